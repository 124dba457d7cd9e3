"""What autogenerate finds about queues: it puts right what Alembic's own comparison made of them.

Alembic sees a queue as a table with a comment, indexes and columns of its own, and compares those
by their text. Here they become operations on queues, in an order in which the table is a working
queue after every step: one that isn't stops schema reloading for a whole Vitess tablet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alembic.operations import ops
from alembic.util import CommandError, PriorityDispatchResult
from sqlalchemy import Index, Integer, Table, UniqueConstraint
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.schema import SchemaItem

from sqla_vitess_messages import InvalidQueue, QueueOptions
from sqla_vitess_messages.ddl import (
    OPTIONS_KEY,
    check_message_table,
    index_names,
    is_vitess,
)
from sqla_vitess_messages.layouts import LAYOUTS
from sqla_vitess_messages.options import MARK, Layout
from sqla_vitess_messages.vschema import Vindex, is_sharded, vindexes_of

from .operations import (
    AlterMessageQueueOp,
    ConvertToMessageQueueOp,
    CreateMessageQueueOp,
    DropMessageQueueOp,
)
from .vschema_operations import SEQUENCE, AddVindexOp

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

__all__ = ["compare_queues", "leave_out_indexes"]

_QUEUE_INDEXES = {spec.name for layout in LAYOUTS.values() for spec in layout.indexes}
_EVERY_QUEUE_HAS = set.intersection(*(set(layout.columns) for layout in LAYOUTS.values()))


@dataclass
class _Existing:
    """The table in the database that has a queue's name."""

    columns: dict[str, Any]
    primary_key: tuple[str, ...]
    indexes: set[str]
    comment: str | None
    """None where the database keeps no comments."""

    @property
    def layout(self) -> Layout | None:
        """The layout that the table has; None for an ordinary table."""
        for name in ("portable", "minimal", "classic"):
            layout: Layout = name
            spec = LAYOUTS[layout]
            if self.columns.keys() >= set(spec.columns) and self.primary_key == spec.primary_key:
                return layout
        return None

    @property
    def options(self) -> QueueOptions | None:
        """The options that the comment tells; None if it tells none."""
        if not self.comment or self.layout is None:
            return None
        try:
            return QueueOptions.from_comment(self.comment, layout=self.layout)
        except InvalidQueue:
            return None


def leave_out_indexes(
    context: AutogenContext, _upgrade_ops: ops.UpgradeOps
) -> PriorityDispatchResult:
    """Keep Alembic from comparing the queues' own indexes, whose DESC reflection may lose."""
    context._object_filters.append(_is_compared)
    return PriorityDispatchResult.CONTINUE


def _is_compared(
    item: SchemaItem, name: str | None, _type: str, _reflected: bool, _compare_to: object
) -> bool:
    if not isinstance(item, (Index, UniqueConstraint)) or item.table is None:
        return True
    is_queue = OPTIONS_KEY in item.table.info or _EVERY_QUEUE_HAS.issubset(item.table.c.keys())
    return not is_queue or str(name).removeprefix(f"{item.table.name}_") not in _QUEUE_INDEXES


def compare_queues(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Rewrite what Alembic's comparison found about queues.

    :raises CommandError: for a change that no migration can make.
    """
    try:
        _compare_all(context, upgrade_ops)
    except InvalidQueue as error:
        raise CommandError(str(error)) from error
    return PriorityDispatchResult.CONTINUE


def _compare_all(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> None:
    queues = set()
    for table in context.sorted_tables:
        check_message_table(table)
        if isinstance(table.info.get(OPTIONS_KEY), QueueOptions):
            queues.add((table.schema, table.name))
            if (created := _find(upgrade_ops, ops.CreateTableOp, table)) is not None:
                _create(upgrade_ops, created, table)
            elif (existing := _look_at(context, table)) is not None:
                _compare(context, upgrade_ops, table, existing)
    for operation in list(upgrade_ops.ops):
        if isinstance(operation, ops.DropTableOp):
            _drop(context, upgrade_ops, operation)
        elif (
            isinstance(operation, ops.ModifyTableOps)
            and (operation.schema, operation.table_name) not in queues
        ):
            _put_comment_first(operation)


def _find(upgrade_ops: ops.UpgradeOps, kind: type[Any], table: Table) -> Any:
    for operation in upgrade_ops.ops:
        if (
            isinstance(operation, kind)
            and operation.table_name == table.name
            and operation.schema in (table.schema, None)
        ):
            return operation
    return None


def _look_at(context: AutogenContext, table: Table) -> _Existing | None:
    """Return what the database has under the queue's name, unless filters hide the table."""
    inspector = context.inspector
    if not inspector.has_table(table.name, schema=table.schema):
        return None
    if not context.run_object_filters(table, table.name, "table", False, None):
        return None
    return _reflect(inspector, table.name, table.schema)


def _reflect(inspector: Inspector, name: str, schema: str | None) -> _Existing:
    comment = None
    if inspector.dialect.supports_comments:
        comment = inspector.get_table_comment(name, schema=schema)["text"] or ""
    return _Existing(
        {str(column["name"]): column for column in inspector.get_columns(name, schema=schema)},
        tuple(inspector.get_pk_constraint(name, schema=schema)["constrained_columns"]),
        {str(index["name"]) for index in inspector.get_indexes(name, schema=schema)},
        comment,
    )


def _create(upgrade_ops: ops.UpgradeOps, created: ops.CreateTableOp, table: Table) -> None:
    creating = CreateMessageQueueOp.from_table(table, table.info[OPTIONS_KEY])
    upgrade_ops.ops[upgrade_ops.ops.index(created)] = creating


def _drop(context: AutogenContext, upgrade_ops: ops.UpgradeOps, dropped: ops.DropTableOp) -> None:
    existing = _reflect(context.inspector, dropped.table_name, dropped.schema)
    if existing.comment == SEQUENCE:
        upgrade_ops.ops.remove(dropped)  # op.create_sequence made it, and no model has it.
        return
    layout = existing.layout
    if layout is None or (existing.comment is not None and MARK not in existing.comment):
        return
    options = existing.options or QueueOptions(layout=layout)
    table = dropped.to_table(context.migration_context)
    if vindexes := _existing_vindexes(context, table):
        options = options.replace(shard_by=vindexes[0].columns, vindex=vindexes[0].name)
    creating = CreateMessageQueueOp.from_table(table, options)
    upgrade_ops.ops[upgrade_ops.ops.index(dropped)] = DropMessageQueueOp(
        dropped.table_name, schema=dropped.schema, creating=creating
    )


def _compare(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, table: Table, existing: _Existing
) -> None:
    options: QueueOptions = table.info[OPTIONS_KEY]
    change = _change(table, existing)
    is_rebuilt = existing.layout != options.layout
    modify = _find(upgrade_ops, ops.ModifyTableOps, table)
    layout = LAYOUTS[options.layout]
    # A key is NOT NULL, also in the classic layout, which doesn't say so.
    own = layout.columns if is_rebuilt else layout.primary_key
    rest = [
        operation
        for operation in ([] if modify is None else modify.ops)
        if not _is_about_queue(operation, own)
    ]
    added = [operation for operation in rest if isinstance(operation, ops.AddColumnOp)]
    others = [operation for operation in rest if not isinstance(operation, ops.AddColumnOp)]
    changes: list[ops.MigrateOperation] = [] if change is None else [change]
    if not is_rebuilt:
        changes += _missing_indexes(context, table, existing)
    changes += _missing_vindexes(context, table)
    # A column is there before the comment names it, and goes after the comment has let it go:
    # Alembic drops columns last, and a downgrade goes the other way round. The queue's operations
    # stand by themselves, for those on the table may be rendered as a batch.
    parts = [
        ops.ModifyTableOps(table.name, added, schema=table.schema),
        *changes,
        ops.ModifyTableOps(table.name, others, schema=table.schema),
    ]
    end = len(upgrade_ops.ops)
    position = end if modify is None else upgrade_ops.ops.index(modify)
    upgrade_ops.ops[position : position + 1] = [
        part for part in parts if not isinstance(part, ops.ModifyTableOps) or part.ops
    ]


def _change(
    table: Table, existing: _Existing
) -> AlterMessageQueueOp | ConvertToMessageQueueOp | None:
    """Return how the table becomes the queue that the model says.

    :raises InvalidQueue: when it can't.
    """
    options: QueueOptions = table.info[OPTIONS_KEY]
    layout = existing.layout
    if layout is None:
        _check_convertible(table, existing, options)
        autoincrement = existing.columns["id"].get("autoincrement") in (True, "auto")
        return ConvertToMessageQueueOp(
            table.name, options, autoincrement=autoincrement, schema=table.schema
        )
    if layout != options.layout and (layout, options.layout) != ("classic", "portable"):
        raise InvalidQueue(
            f"table {table.name!r}: has the {layout} layout and the model the {options.layout} "
            "one, for which Vitess would have to do without a column or key that it needs; set "
            f"layout={layout!r}, or make a queue of another name and let this one run empty"
        )
    if layout == options.layout and (existing.comment is None or _same(existing.options, options)):
        return None
    before = existing.options
    if before is None:  # As where there are no comments.
        before = options if layout == options.layout else QueueOptions(layout=layout)
    return AlterMessageQueueOp(
        table.name, options, schema=table.schema, existing_layout=layout, existing=before
    )


def _check_convertible(table: Table, existing: _Existing, options: QueueOptions) -> None:
    if existing.comment and MARK in existing.comment:
        lacks = [name for name in LAYOUTS["minimal"].columns if name not in existing.columns]
        raise InvalidQueue(
            f"table {table.name!r}: its comment says that it is a message table, but it "
            f"{'lacks ' + ', '.join(lacks) if lacks else 'has another primary key'}; "
            "Vitess can't work with it. Drop the comment, or the table, by hand first"
        )
    if options.layout == "classic":
        raise InvalidQueue(
            f"table {table.name!r}: an existing table becomes a queue with the portable or "
            "minimal layout, not the classic one"
        )
    id_column = existing.columns.get("id")
    if existing.primary_key != ("id",) or not isinstance(id_column and id_column["type"], Integer):
        raise InvalidQueue(
            f"table {table.name!r}: its primary key is ({', '.join(existing.primary_key)}); a "
            "table becomes a queue if that is an integer column 'id'. Make a queue of another "
            "name, and copy the rows"
        )
    taken = set(LAYOUTS[options.layout].columns) - {"id"}
    if clashes := sorted(taken & existing.columns.keys()):
        raise InvalidQueue(
            f"table {table.name!r}: its columns {', '.join(clashes)} have names that belong to "
            "the queue; rename them in a migration of their own first"
        )


def _same(one: QueueOptions | None, other: QueueOptions) -> bool:
    """Compare by what the options mean: in which order columns are streamed doesn't matter."""
    if one is None:
        return False
    columns = [None if o.message_cols is None else set(o.message_cols) for o in (one, other)]
    ignored = {"message_cols": None, "shard_by": None, "vindex": None}
    return columns[0] == columns[1] and one.replace(**ignored) == other.replace(**ignored)


def _is_about_queue(operation: ops.MigrateOperation, own_columns: Sequence[str]) -> bool:
    """Say whether Alembic's operation is about what the queue's own ones see to."""
    if isinstance(operation, ops.AddColumnOp):
        return operation.column.name in own_columns
    if isinstance(operation, ops.AlterColumnOp):
        return operation.column_name in own_columns
    return isinstance(operation, (ops.CreateTableCommentOp, ops.DropTableCommentOp))


def _missing_indexes(
    context: AutogenContext, table: Table, existing: _Existing
) -> list[ops.MigrateOperation]:
    assert context.dialect is not None
    missing = index_names(table, context.dialect.name) - existing.indexes
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    return [ops.CreateIndexOp.from_index(index) for index in indexes if index.name in missing]


def _missing_vindexes(context: AutogenContext, table: Table) -> list[ops.MigrateOperation]:
    """Return what the vschema lacks of a queue in a sharded keyspace.

    :raises InvalidQueue: when it is sharded by something else.
    """
    options: QueueOptions = table.info[OPTIONS_KEY]
    vindexes = _existing_vindexes(context, table)
    if options.shard_by is None or options.vindex is None or vindexes is None:
        return []
    if not vindexes:
        adding = AddVindexOp(table.name, options.shard_by, options.vindex, keyspace=table.schema)
        return [adding]
    if vindexes[0].columns != options.shard_by or vindexes[0].name != options.vindex:
        raise InvalidQueue(
            f"table {table.name!r}: is sharded by {vindexes[0].name}"
            f"({', '.join(vindexes[0].columns)}) and the model says {options.vindex}"
            f"({', '.join(options.shard_by)}); rows can't move to other shards in a migration. "
            "Make a queue of another name and let this one run empty"
        )
    return []


def _existing_vindexes(context: AutogenContext, table: Table) -> list[Vindex] | None:
    """Return the vindexes of a table; None where there are no shards."""
    connection = context.connection
    if connection is None or not is_vitess(connection) or not is_sharded(connection):
        return None
    return vindexes_of(connection, table)


def _put_comment_first(modify: ops.ModifyTableOps) -> None:
    """Let a table that was a queue lose its comment before its columns."""
    dropping = [
        operation
        for operation in modify.ops
        if isinstance(operation, (ops.CreateTableCommentOp, ops.DropTableCommentOp))
        and MARK in (operation.existing_comment or "")
    ]
    modify.ops = dropping + [operation for operation in modify.ops if operation not in dropping]
