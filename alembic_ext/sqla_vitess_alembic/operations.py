"""Operations on message queues in a migration, such as ``op.create_message_queue``.

They take a queue's options as keyword arguments, as :class:`~sqla_vitess_messages.QueueOptions`
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

from alembic.operations import MigrateOperation, Operations
from alembic.operations.schemaobj import SchemaObjects
from sqlalchemy import MetaData, PrimaryKeyConstraint, Table
from sqlalchemy.schema import SchemaItem

from sqla_vitess_messages import InvalidArgument, QueueOptions
from sqla_vitess_messages.shown import shown
from sqla_vitess_messages.table.build import (
    InlineIndexes,
    make_queue_table,
    remove_inline_indexes,
    streamed_columns,
)
from sqla_vitess_messages.table.indexes import own_columns
from sqla_vitess_messages.table.layouts import LAYOUTS, make_columns
from sqla_vitess_messages.table.options import Layout
from sqla_vitess_messages.vitess import vschema
from sqla_vitess_messages.vitess.server import is_mysql

from . import conversion, key
from .vschema_operations import alter_vschema, targets_vitess

__all__ = [
    "AlterMessageQueueOp",
    "ConvertFromMessageQueueOp",
    "ConvertToMessageQueueOp",
    "CreateMessageQueueOp",
    "DropMessageQueueOp",
]

_OPTION_NAMES = tuple(field.name for field in fields(QueueOptions))

ExistingRows = Literal["dead", "due"]


def _split_options(arguments: dict[str, Any]) -> tuple[QueueOptions, dict[str, Any]]:
    """Return the queue's options among keyword arguments, and the other arguments."""
    given = {name: value for name, value in arguments.items() if name in _OPTION_NAMES}
    others = {name: value for name, value in arguments.items() if name not in given}
    return QueueOptions(**given), others


def _only_options(arguments: dict[str, Any]) -> QueueOptions:
    """Return the queue's options.

    :raises InvalidArgument: for an argument that is no option.
    """
    options, unknown = _split_options(arguments)
    if unknown:
        raise InvalidArgument(
            f"{', '.join(unknown)}: a queue has no such options, only {', '.join(_OPTION_NAMES)}"
        )
    return options


@Operations.register_operation("create_message_queue")
class CreateMessageQueueOp(MigrateOperation):
    """Create a queue's table, with its keys, indexes, comment and vindex."""

    def __init__(
        self,
        name: str,
        payload: Sequence[SchemaItem],
        options: QueueOptions,
        *,
        schema: str | None = None,
        **table_options: Any,
    ) -> None:
        self.name = name
        self.payload = list(payload)
        self.options = options
        self.schema = schema
        self.table_options = table_options

    @classmethod
    def create_message_queue(
        cls,
        operations: Operations,
        name: str,
        *payload: SchemaItem,
        schema: str | None = None,
        **options: Any,
    ) -> Table:
        """Create a queue.

        :param payload: the columns and constraints that follow the queue's own.
        :param options: those of :class:`~sqla_vitess_messages.QueueOptions`, and any of the Table's
            such as ``mysql_engine``.
        :raises InvalidQueue: before any DDL is sent, when they don't make a working queue.
        """
        queue_options, table_options = _split_options(options)
        table: Table = operations.invoke(
            cls(name, payload, queue_options, schema=schema, **table_options)
        )
        return table

    @classmethod
    def from_table(cls, table: Table, options: QueueOptions) -> CreateMessageQueueOp:
        """Return the operation that creates this queue."""
        own = own_columns(options)
        payload: list[SchemaItem] = [column for column in table.columns if column.name not in own]
        payload += [
            constraint
            for constraint in table.constraints
            if not isinstance(constraint, (PrimaryKeyConstraint, InlineIndexes))
        ]
        if options.message_cols == tuple(streamed_columns(table)):
            options = options.replace(message_cols=None)
        return cls(table.name, payload, options, schema=table.schema, **table.kwargs)

    def reverse(self) -> DropMessageQueueOp:
        return DropMessageQueueOp(self.name, schema=self.schema, creating=self)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("create_message_queue", self.name)


@Operations.register_operation("drop_message_queue")
class DropMessageQueueOp(MigrateOperation):
    """Drop a queue's table, and its entry in the vschema."""

    def __init__(
        self,
        name: str,
        *,
        schema: str | None = None,
        creating: CreateMessageQueueOp | None = None,
    ) -> None:
        self.name = name
        self.schema = schema
        self._creating = creating

    @classmethod
    def drop_message_queue(
        cls, operations: Operations, name: str, *, schema: str | None = None
    ) -> None:
        """Drop a queue with all its messages."""
        operations.invoke(cls(name, schema=schema))

    def reverse(self) -> CreateMessageQueueOp:
        if self._creating is None:
            raise ValueError(
                f"queue {self.name!r}: the operation that drops it can't be reversed, because it "
                "was made without creating="
            )
        return self._creating

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_message_queue", self.name)


@Operations.register_operation("alter_message_queue")
class AlterMessageQueueOp(MigrateOperation):
    """Change a queue's options, its key, or its layout from classic to portable.

    :param existing: the options that the table has.
    """

    def __init__(
        self,
        name: str,
        options: QueueOptions,
        *,
        schema: str | None = None,
        existing_layout: Layout | None = None,
        existing_unique_by: Sequence[str] | None = None,
        existing: QueueOptions | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.schema = schema
        self.existing_layout = existing_layout or options.layout
        self.existing_unique_by = tuple(existing_unique_by) if existing_unique_by else None
        self._existing = existing

    @classmethod
    def alter_message_queue(
        cls,
        operations: Operations,
        name: str,
        *,
        existing_layout: Layout | None = None,
        existing_unique_by: Sequence[str] | None = None,
        schema: str | None = None,
        **options: Any,
    ) -> None:
        """Change a queue's options.

        :param existing_layout: the layout that the table has, if ``layout`` is another one.
        :param existing_unique_by: the columns of the key that the table has, if it has one.
        :param options: those of :class:`~sqla_vitess_messages.QueueOptions`. Options that aren't
            given get their defaults, except for ``message_cols``, which is required unless the
            layout is classic.
        """
        queue_options = _only_options(options)
        if queue_options.message_cols is None and LAYOUTS[queue_options.layout].streams_all:
            raise InvalidArgument(
                "message_cols=None: name the columns to be streamed, 'id' first, because a "
                "migration doesn't know the table's columns"
            )
        operations.invoke(
            cls(
                name,
                queue_options,
                schema=schema,
                existing_layout=existing_layout,
                existing_unique_by=existing_unique_by,
            )
        )

    def reverse(self) -> AlterMessageQueueOp:
        return AlterMessageQueueOp(
            self.name,
            self._existing or self.options,
            schema=self.schema,
            existing_layout=self.options.layout,
            existing_unique_by=self.options.unique_by,
            existing=self.options,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("alter_message_queue", self.name, self.options.to_comment())


@Operations.register_operation("convert_to_message_queue")
class ConvertToMessageQueueOp(MigrateOperation):
    """Convert an ordinary table into a queue."""

    def __init__(
        self,
        name: str,
        options: QueueOptions,
        *,
        autoincrement: bool = False,
        existing_rows: ExistingRows = "dead",
        schema: str | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.autoincrement = autoincrement
        self.existing_rows = existing_rows
        self.schema = schema

    @classmethod
    def convert_to_message_queue(
        cls,
        operations: Operations,
        name: str,
        *,
        existing_rows: ExistingRows = "dead",
        schema: str | None = None,
        **options: Any,
    ) -> None:
        """Convert a table whose primary key is an integer column ``id`` into a queue.

        :param existing_rows: what its rows become: ``"dead"`` messages, which are only delivered
            after a requeue, or messages that are ``"due"`` at once.
        :param options: as in ``alter_message_queue``.
        """
        if existing_rows not in ("dead", "due"):
            raise InvalidArgument(f"existing_rows={shown(existing_rows)}: expected 'dead' or 'due'")
        queue_options = _only_options(options)
        operations.invoke(cls(name, queue_options, existing_rows=existing_rows, schema=schema))

    def reverse(self) -> ConvertFromMessageQueueOp:
        return ConvertFromMessageQueueOp(
            self.name, self.options, autoincrement=self.autoincrement, schema=self.schema
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("convert_to_message_queue", self.name)


@Operations.register_operation("convert_from_message_queue")
class ConvertFromMessageQueueOp(MigrateOperation):
    """Convert a queue into an ordinary table."""

    def __init__(
        self,
        name: str,
        options: QueueOptions,
        *,
        autoincrement: bool = False,
        schema: str | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.autoincrement = autoincrement
        self.schema = schema

    @classmethod
    def convert_from_message_queue(
        cls,
        operations: Operations,
        name: str,
        *,
        layout: Layout = "portable",
        unique_by: Sequence[str] | None = None,
        autoincrement: bool = False,
        schema: str | None = None,
    ) -> None:
        """Convert a queue into an ordinary table with the primary key ``id``, and keep its rows.

        :param layout: the queue's.
        :param unique_by: the queue's.
        :param autoincrement: whether the database gives new rows their ids.
        """
        options = QueueOptions(layout=layout, unique_by=unique_by)
        operations.invoke(cls(name, options, autoincrement=autoincrement, schema=schema))

    def reverse(self) -> ConvertToMessageQueueOp:
        return ConvertToMessageQueueOp(
            self.name, self.options, autoincrement=self.autoincrement, schema=self.schema
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("convert_from_message_queue", self.name)


@Operations.implementation_for(CreateMessageQueueOp)
def _create(operations: Operations, operation: CreateMessageQueueOp) -> Table:
    table = SchemaObjects(operations.migration_context).table(
        operation.name,
        *make_columns(operation.options.layout),
        *operation.payload,
        schema=operation.schema,
        **operation.table_options,
    )
    make_queue_table(table, operation.options)
    if is_mysql(operations.migration_context.dialect):
        remove_inline_indexes(table)
    operations.impl.create_table(table)
    if operation.options.shard_by and operations.migration_context.as_sql:
        _add_vindex(operations, operation)
    return table


def _add_vindex(operations: Operations, operation: CreateMessageQueueOp) -> None:
    """Write the statement that, with a connection, is executed when the table has been created."""
    columns, vindex = operation.options.shard_by, operation.options.vindex
    assert columns is not None
    assert vindex is not None
    if targets_vitess(operations, sharded=True):
        adding = vschema.AddVindex(operation.name, columns, vindex, keyspace=operation.schema)
        alter_vschema(operations, adding)


@Operations.implementation_for(DropMessageQueueOp)
def _drop(operations: Operations, operation: DropMessageQueueOp) -> None:
    table = Table(operation.name, MetaData(), schema=operation.schema)
    connection = operations.migration_context.connection
    is_in_vschema = targets_vitess(operations, sharded=True)
    if is_in_vschema and connection is not None and not operations.migration_context.as_sql:
        is_in_vschema = bool(vschema.vindexes_of(connection, table))
    operations.impl.drop_table(table)
    if is_in_vschema:
        alter_vschema(operations, vschema.DropTable(operation.name, keyspace=operation.schema))


@Operations.implementation_for(AlterMessageQueueOp)
def _alter(operations: Operations, operation: AlterMessageQueueOp) -> None:
    # The comment names the columns of the table, before, between and after these steps.
    if operation.options.unique_by is not None:
        _change_key(operations, operation)
    _change_options(operations, operation)
    if operation.options.unique_by is None:
        _change_key(operations, operation)


def _change_key(operations: Operations, operation: AlterMessageQueueOp) -> None:
    change = operation.existing_unique_by, operation.options.unique_by
    key.change_key(operations, operation.name, operation.schema, *change)


def _change_options(operations: Operations, operation: AlterMessageQueueOp) -> None:
    if operation.existing_layout != operation.options.layout:
        conversion.change_layout(
            operations,
            operation.name,
            operation.schema,
            operation.existing_layout,
            operation.options,
        )
    elif operations.migration_context.dialect.supports_comments:
        operations.create_table_comment(
            operation.name, operation.options.to_comment(), schema=operation.schema
        )


@Operations.implementation_for(ConvertToMessageQueueOp)
def _convert_to(operations: Operations, operation: ConvertToMessageQueueOp) -> None:
    conversion.to_queue(
        operations,
        operation.name,
        operation.schema,
        operation.options,
        due=operation.existing_rows == "due",
    )


@Operations.implementation_for(ConvertFromMessageQueueOp)
def _convert_from(operations: Operations, operation: ConvertFromMessageQueueOp) -> None:
    conversion.from_queue(
        operations,
        operation.name,
        operation.schema,
        operation.options,
        autoincrement=operation.autoincrement,
    )
