"""Change a whole table to another kind: by one ALTER TABLE on MySQL, by a copy on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    Column,
    DefaultClause,
    Integer,
    MetaData,
    Table,
)
from sqlalchemy.schema import CreateIndex

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.rows.states import first_due_time
from sqla_vitess_messages.table.build import make_queue_table
from sqla_vitess_messages.table.indexes import index_specs, make_own_columns, own_columns
from sqla_vitess_messages.table.layouts import LAYOUTS, make_columns
from sqla_vitess_messages.table.options import Layout
from sqla_vitess_messages.table.order import ORDER_COLUMNS
from sqla_vitess_messages.table.unique import UNIQUE_COLUMNS, UNSETTLED, unique_index
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
from .copying import replace_by_copy
from .key import refuse_duplicates

__all__ = ["change_layout", "from_queue", "to_queue"]


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
        replace_by_copy(operations, name, schema, [id_column], replaces=own_columns(options))
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
    columns = make_own_columns(options)
    new = replace_by_copy(operations, name, schema, columns, replaces=replaces, due=due)
    make_queue_table(new, options)
    for index in new.indexes:
        operations.execute(CreateIndex(index))
