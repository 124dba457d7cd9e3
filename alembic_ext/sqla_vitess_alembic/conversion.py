"""Change a whole table to another kind: by one ALTER TABLE on MySQL, by a copy on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alembic.operations import Operations
from alembic.operations.schemaobj import SchemaObjects
from alembic.util import CommandError
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DefaultClause,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    insert,
    literal,
    select,
)
from sqlalchemy.schema import CreateIndex

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.rows.states import first_due_time
from sqla_vitess_messages.table.build import make_queue_table
from sqla_vitess_messages.table.indexes import index_specs, make_own_columns, own_columns
from sqla_vitess_messages.table.layouts import LAYOUTS, make_columns
from sqla_vitess_messages.table.options import Layout
from sqla_vitess_messages.table.order import ORDER_COLUMNS
from sqla_vitess_messages.table.unique import UNIQUE_COLUMNS, UNIQUE_INDEX, UNSETTLED, unique_index
from sqla_vitess_messages.table.validate import check_layout
from sqla_vitess_messages.vitess.server import is_mysql

from .alter_table import (
    AlterTable,
    Clause,
    add_index,
    add_primary_key,
    drop_column,
    drop_index,
    drop_primary_key,
    place_column,
    set_comment,
)
from .key import refuse_duplicates

__all__ = ["change_layout", "from_queue", "to_queue"]

TEMPORARY = "_alembic_tmp_"
"""The prefix of the name of a copy, as in Alembic's own batches."""


def change_layout(
    operations: Operations,
    name: str,
    schema: str | None,
    existing: Layout,
    options: QueueOptions,
) -> None:
    """Change a queue from the classic layout to the portable one, or back."""
    check_layout(operations.migration_context.connection, name, options.layout)
    before, after = LAYOUTS[existing], LAYOUTS[options.layout]
    if not is_mysql(operations.migration_context.dialect):
        replaces = (*before.columns, *UNIQUE_COLUMNS)
        _copy_to_queue(operations, name, schema, options, replaces=replaces)
        return
    table = Table(name, MetaData(), *make_columns(options.layout), schema=schema)
    clauses = [drop_index(spec) for spec in before.indexes if spec not in after.indexes]
    clauses += [drop_column(column) for column in before.columns if column not in after.columns]
    for number, column in enumerate(after.columns):
        verb = "MODIFY" if column in before.columns else "ADD"
        clauses.append(place_column(verb, table.c[column], after.columns[:number]))
    clauses += [add_index(spec) for spec in after.indexes if spec not in before.indexes]
    clauses.append(set_comment(options.to_comment()))
    operations.execute(AlterTable(table, clauses))


def to_queue(
    operations: Operations, name: str, schema: str | None, options: QueueOptions, *, due: bool
) -> None:
    """Convert a table whose primary key is ``id`` into a queue.

    :param due: whether its rows become messages that are ready at once, or dead ones.
    """
    if options.unique_by is not None and due:
        refuse_duplicates(operations, name, schema, options.unique_by, is_queue=False)
    if not is_mysql(operations.migration_context.dialect):
        _copy_to_queue(operations, name, schema, options, replaces=("id",), due=due)
        return
    layout = LAYOUTS[options.layout]
    table = Table(name, MetaData(), *make_own_columns(options), schema=schema)
    time_next = table.c.time_next
    final = time_next.server_default
    # The existing rows get the default of the new column, without an UPDATE of all of them.
    time_next.server_default = DefaultClause(str(first_due_time(due=due)))
    clauses: list[Clause] = []
    for number, column in enumerate(layout.columns):
        verb = "MODIFY" if column == "id" else "ADD"
        clauses.append(place_column(verb, table.c[column], layout.columns[:number]))
    if options.unique_by is not None:
        clauses += [place_column("ADD", table.c[column], None) for column in UNIQUE_COLUMNS]
    if options.ordered_by is not None:
        clauses += [place_column("ADD", table.c[column], None) for column in ORDER_COLUMNS]
    if layout.primary_key != ("id",):
        clauses += [drop_primary_key, add_primary_key(layout.primary_key)]
    clauses += [add_index(spec) for spec in index_specs(options)]
    clauses.append(set_comment(options.to_comment()))
    operations.execute(AlterTable(table, clauses))
    if not due:
        time_next.server_default = final
        operations.execute(AlterTable(table, [place_column("MODIFY", time_next, None)]))


def from_queue(
    operations: Operations,
    name: str,
    schema: str | None,
    options: QueueOptions,
    *,
    autoincrement: bool,
) -> None:
    """Convert a queue into an ordinary table with the primary key ``id``.

    :param autoincrement: whether the database gives new rows their ids.
    """
    layout = LAYOUTS[options.layout]
    # SQLite generates ids only in a column of type INTEGER, which has 64 bits there.
    type_ = BigInteger().with_variant(Integer(), "sqlite")
    id_column: Column[Any] = Column(
        "id", type_, primary_key=True, autoincrement=autoincrement, nullable=False
    )
    if not is_mysql(operations.migration_context.dialect):
        old = _reflect(operations, name, schema)
        new = _copy(operations, old, [id_column], replaces=own_columns(options))
        _create_indexes(operations, old, new)
        return
    table = Table(name, MetaData(), id_column, schema=schema)
    clauses = [set_comment("")]
    dropped = own_columns(options)
    if options.unique_by is not None:
        # MySQL drops no column on which a generated one depends, not even together with that.
        key = [drop_index(unique_index(options.unique_by)), drop_column(UNSETTLED)]
        operations.execute(AlterTable(table, key))
        dropped = tuple(column for column in dropped if column != UNSETTLED)
    clauses += [drop_index(spec) for spec in layout.indexes]
    if layout.primary_key != ("id",):
        clauses += [drop_primary_key, add_primary_key(("id",))]
    clauses += [drop_column(column) for column in dropped if column != "id"]
    clauses.append(place_column("MODIFY", id_column, None))
    operations.execute(AlterTable(table, clauses))


def _copy_to_queue(
    operations: Operations,
    name: str,
    schema: str | None,
    options: QueueOptions,
    *,
    replaces: Sequence[str],
    due: bool | None = None,
) -> None:
    """Copy a table to a queue of the same name.

    :param replaces: the old table's columns that aren't payload.
    :param due: whether the rows of an ordinary table become ready or dead messages; None: the
        old table is a queue.
    """
    old = _reflect(operations, name, schema)
    new = _copy(operations, old, make_own_columns(options), replaces=replaces, due=due)
    make_queue_table(new, options)
    _create_indexes(operations, old, new)


def _reflect(operations: Operations, name: str, schema: str | None) -> Table:
    context = operations.migration_context
    if context.as_sql or context.connection is None:
        raise CommandError(
            f"table {name!r}: SQLite can't alter it in place, and a copy needs to read the table "
            "from the database; run this migration without --sql"
        )
    return Table(name, MetaData(), schema=schema, autoload_with=context.connection)


def _copy(
    operations: Operations,
    old: Table,
    columns: Sequence[Column[Any]],
    *,
    replaces: Sequence[str],
    due: bool | None = None,
) -> Table:
    """Replace a table by a copy of the same name, which has no indexes yet, and return that.

    :param columns: the copy's columns that aren't payload.
    :param replaces: the old table's columns that aren't payload.
    :param due: as in :func:`_copy_to_queue`.
    """
    context = operations.migration_context
    payload = [column for column in old.columns if column.name not in replaces]
    constraints = [
        constraint
        for constraint in old.constraints
        if not isinstance(constraint, PrimaryKeyConstraint)
    ]
    new = SchemaObjects(context).table(
        TEMPORARY + old.name, *columns, *payload, *constraints, schema=old.schema
    )
    operations.impl.create_table(new)
    # The other columns get their defaults.
    sources: dict[Column[Any], ColumnElement[Any]] = {
        column: old.c[column.name]
        for column in new.columns
        if column.name in old.c and column.computed is None
    }
    if due is not None:
        sources[new.c.time_next] = literal(first_due_time(due=due), BigInteger)
        if "time_scheduled" in new.c:
            sources[new.c.time_scheduled] = literal(0)
    assert context.connection is not None
    context.connection.execute(insert(new).from_select(list(sources), select(*sources.values())))
    operations.drop_table(old.name, schema=old.schema)
    operations.rename_table(new.name, old.name, schema=old.schema)
    return new.to_metadata(MetaData(), name=old.name)


def _create_indexes(operations: Operations, old: Table, new: Table) -> None:
    """Create the indexes of a copy: its own, and those of the old table that aren't a queue's."""
    names = {spec.name for layout in LAYOUTS.values() for spec in layout.indexes}
    queue_indexes = {f"{old.name}_{name}" for name in (*names, UNIQUE_INDEX)}
    for index in old.indexes:
        if index.name not in queue_indexes:
            columns = [new.c[column.name] for column in index.columns]
            Index(index.name, *columns, unique=index.unique)
    for index in new.indexes:
        operations.execute(CreateIndex(index))
