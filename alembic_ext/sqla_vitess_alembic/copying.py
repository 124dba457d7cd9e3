"""Replace a table on SQLite, which can't alter it in place, by a copy of the same name."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

from alembic.operations import Operations
from alembic.operations.schemaobj import SchemaObjects
from alembic.util import CommandError
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    Select,
    Table,
    func,
    insert,
    inspect,
    literal,
    select,
    table,
)
from sqlalchemy import column as sql_column
from sqlalchemy.exc import SAWarning

from sqla_vitess_messages.rows.states import first_due_time
from sqla_vitess_messages.table.layouts import LAYOUTS
from sqla_vitess_messages.table.order import ORDER_INDEX, SEQ
from sqla_vitess_messages.table.unique import UNIQUE_INDEX

__all__ = ["replace_by_copy"]

TEMPORARY = "_alembic_tmp_"
"""The prefix of the name of a copy, as in Alembic's own batches."""


def replace_by_copy(
    operations: Operations,
    name: str,
    schema: str | None,
    columns: Sequence[Column[Any]],
    *,
    replaces: Sequence[str],
    due: bool | None = None,
) -> Table:
    """Replace a table by a copy of the same name, and return that.

    It has the old table's indexes and triggers, except for the indexes of a queue.

    :param columns: the copy's columns that aren't payload.
    :param replaces: the old table's columns that aren't payload.
    :param due: whether the rows of an ordinary table become ready or dead messages; None: the
        old table is a queue, or the new one isn't.
    """
    old = _reflect(operations, name, schema)
    context = operations.migration_context
    assert context.connection is not None
    _refuse_references(context.connection, old)
    payload = [column for column in old.columns if column.name not in replaces]
    constraints = [
        constraint
        for constraint in old.constraints
        if not isinstance(constraint, PrimaryKeyConstraint)
    ]
    kept = _statements_to_keep(context.connection, old, {column.name for column in payload})
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
    context.connection.execute(insert(new).from_select(list(sources), select(*sources.values())))
    operations.drop_table(old.name, schema=old.schema)
    operations.rename_table(new.name, old.name, schema=old.schema)
    for statement in kept:
        context.connection.exec_driver_sql(statement)
    return new.to_metadata(MetaData(), name=old.name)


def _reflect(operations: Operations, name: str, schema: str | None) -> Table:
    context = operations.migration_context
    if context.as_sql or context.connection is None:
        raise CommandError(
            f"table {name!r}: SQLite can't alter it in place, and a copy needs to read the table "
            "from the database; run this migration without --sql"
        )
    with warnings.catch_warnings():
        # Of indexes that SQLAlchemy can't describe. They are made again by their own statements.
        warnings.filterwarnings("ignore", "Skipped unsupported reflection", SAWarning)
        return Table(name, MetaData(), schema=schema, autoload_with=context.connection)


def _refuse_references(connection: Connection, old: Table) -> None:
    """Check that SQLite deletes no rows of other tables with the old table.

    :raises CommandError: with the remedy.
    """
    if not connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        return
    inspector = inspect(connection)
    referring = [
        name
        for name in inspector.get_table_names(old.schema)
        if name != old.name
        and any(
            key["referred_table"] == old.name
            for key in inspector.get_foreign_keys(name, old.schema)
        )
    ]
    if referring:
        raise CommandError(
            f"table {old.name!r}: SQLite can't alter it in place, and with PRAGMA foreign_keys=ON "
            "replacing it by a copy would delete what refers to it in "
            f"{', '.join(map(repr, referring))}; run this migration with PRAGMA foreign_keys=OFF"
        )


def _statements_to_keep(connection: Connection, old: Table, payload: Collection[str]) -> list[str]:
    """Return the statements that made a table's indexes and triggers, but for a queue's indexes."""
    names = {UNIQUE_INDEX} | {spec.name for layout in LAYOUTS.values() for spec in layout.indexes}
    if SEQ not in payload:
        names.add(ORDER_INDEX)
    objects = table(
        "sqlite_master", *map(sql_column, ("type", "name", "tbl_name", "sql")), schema=old.schema
    ).c
    finding: Select[Any] = (
        select(objects.sql)
        .where(
            objects.type.in_(("index", "trigger")),
            func.lower(objects.tbl_name) == old.name.lower(),
            objects.name.not_in([f"{old.name}_{name}" for name in names]),
            objects.sql.is_not(None),  # Those of a constraint are made with the table.
        )
        .order_by(objects.type)
    )
    return list(connection.scalars(finding))
