"""Change the key of which a queue has at most one unsettled message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import (
    Column,
    ColumnClause,
    Index,
    Integer,
    MetaData,
    Select,
    Table,
    column,
    func,
    select,
    table,
)
from sqlalchemy.schema import CreateIndex

from sqla_vitess_messages.table.build import index_columns, index_name
from sqla_vitess_messages.table.layouts import DEAD
from sqla_vitess_messages.table.unique import (
    UNIQUE_COLUMNS,
    UNIQUE_INDEX,
    make_unique_columns,
    unique_index,
)
from sqla_vitess_messages.vitess.server import is_mysql

from .alter_table import AlterTable, Clause, add_index, drop_column, drop_index, place_column

__all__ = ["change_key", "refuse_duplicates"]

Key = Sequence[str]

SHOWN = 5
"""Keys that an error names."""


def change_key(
    operations: Operations, name: str, schema: str | None, before: Key | None, after: Key | None
) -> None:
    """Change the columns of the key, or add or remove it.

    :raises CommandError: when the table has several unsettled messages of a key.
    """
    if before == after:
        return
    if after is not None:
        refuse_duplicates(operations, name, schema, after)
    if is_mysql(operations.migration_context.dialect):
        _change_at_once(operations, name, schema, before, after)
    else:
        _change_step_by_step(operations, name, schema, before, after)


def _change_at_once(
    operations: Operations, name: str, schema: str | None, before: Key | None, after: Key | None
) -> None:
    new = Table(name, MetaData(), *make_unique_columns(), schema=schema)
    clauses: list[Clause] = []
    if before is not None:
        clauses.append(drop_index(unique_index(before)))
    elif after is not None:
        clauses += [place_column("ADD", new.c[column], None) for column in UNIQUE_COLUMNS]
    if after is not None:
        clauses.append(add_index(unique_index(after)))
    else:
        clauses += [drop_column(column) for column in reversed(UNIQUE_COLUMNS)]
    operations.execute(AlterTable(new, clauses))


def _change_step_by_step(
    operations: Operations, name: str, schema: str | None, before: Key | None, after: Key | None
) -> None:
    # The columns of the key are there; their types make no difference to an index.
    payload = [Column(column, Integer) for column in after or ()]
    new = Table(name, MetaData(), *payload, *make_unique_columns(), schema=schema)
    if before is not None:
        operations.drop_index(
            f"{name}_{UNIQUE_INDEX}", table_name=name, schema=schema, if_exists=True
        )
    elif after is not None:
        for added in make_unique_columns():
            operations.add_column(name, added, schema=schema)
    if after is not None:
        spec = unique_index(after)
        index = Index(index_name(new, spec), *index_columns(new, spec), unique=True)
        operations.execute(CreateIndex(index))
        return
    for left in _left_columns(operations, name, schema):
        operations.drop_column(name, left, schema=schema)


def _left_columns(operations: Operations, name: str, schema: str | None) -> list[str]:
    """Return the columns to drop: a change of the layout has copied the table without them."""
    found = operations.migration_context
    if found.as_sql or found.connection is None:
        return list(reversed(UNIQUE_COLUMNS))
    existing = Table(name, MetaData(), schema=schema, autoload_with=found.connection)
    return [left for left in reversed(UNIQUE_COLUMNS) if left in existing.c]


def refuse_duplicates(
    operations: Operations, name: str, schema: str | None, key: Key, *, is_queue: bool = True
) -> None:
    """Check that a table has at most one unsettled message for each key.

    :param is_queue: False for a table all of whose rows become messages that are ready.
    :raises CommandError: with the query that finds them.
    """
    context = operations.migration_context
    if context.as_sql or context.connection is None:
        return
    query = _find_duplicates(name, schema, key, is_queue=is_queue)
    found = context.connection.execute(query.limit(SHOWN)).all()
    if found:
        rendered = query.compile(context.connection, compile_kwargs={"literal_binds": True})
        keys = "; ".join(
            ", ".join(f"{name}={value!r}" for name, value in zip(key, row, strict=False))
            for row in found
        )
        raise CommandError(
            f"table {name!r}: can't be unique by {', '.join(key)}, because it has several "
            f"unsettled messages of a key, such as {keys}. This query finds all: "
            f"{' '.join(str(rendered).split())}. Ack or fail all but one of each key first"
        )


def _find_duplicates(
    name: str, schema: str | None, key: Key, *, is_queue: bool
) -> Select[tuple[object, ...]]:
    columns: list[ColumnClause[Any]] = [column(one) for one in key]
    time_next, time_acked = column("time_next", Integer), column("time_acked", Integer)
    found = (
        select(*columns, func.count().label("messages"))
        .select_from(table(name, *columns, schema=schema))
        .group_by(*columns)
        .having(func.count() > 1)
    )
    return found.where(time_acked.is_(None), time_next < DEAD) if is_queue else found
