"""Compare a queue with the table that the database has."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, Table, inspect

from ..errors import QueueNotFound
from ..vitess.server import is_mysql, is_vitess
from .build import index_names
from .options import MARK, queue_options
from .pauses import PAUSES
from .validate import check_schema

__all__ = ["check_database", "foreign_keys_to"]


def check_database(connection: Connection, table: Table) -> None:
    """Check that the database has the table and that it is this queue.

    :raises QueueNotFound: with what is missing and the remedy.
    :raises InvalidQueue: when the table has a schema that the server can't work with.
    """
    check_schema(connection, table)
    inspector, schema = inspect(connection), connection.schema_for_object(table)
    if not inspector.has_table(table.name, schema=schema):
        where = "the database" if schema is None else f"schema {schema!r}"
        raise QueueNotFound(
            f"{where} has no table {table.name!r}; create it with "
            "Base.metadata.create_all(engine), or run the migrations"
        )
    if queue_options(table).pausable and not inspector.has_table(PAUSES, schema=schema):
        raise QueueNotFound(
            f"the database has no table {PAUSES!r}, which queues with pausable=True need; create "
            "it with Base.metadata.create_all(engine), or run the migrations"
        )
    existing = {column["name"] for column in inspector.get_columns(table.name, schema)}
    if missing := [column.name for column in table.columns if column.name not in existing]:
        raise QueueNotFound(
            f"table {table.name!r} lacks the columns {', '.join(missing)} of its model; "
            "run the migrations"
        )
    if is_mysql(connection.dialect):
        indexes = {index["name"] for index in inspector.get_indexes(table.name, schema)}
        if absent := sorted(index_names(table, inline=True) - indexes):
            raise QueueNotFound(
                f"table {table.name!r} lacks the indexes {', '.join(absent)} of its model, by "
                "which its rows are found; run the migrations"
            )
    if is_vitess(connection):
        comment = inspector.get_table_comment(table.name, schema)["text"] or ""
        if MARK not in comment:
            raise QueueNotFound(
                f"table {table.name!r} is no message table: its comment is {comment!r}, "
                f"expected {table.comment!r}"
            )


def foreign_keys_to(bind: Connection | Engine, table: Table) -> list[str]:
    """Return descriptions of the foreign keys that refer to a table."""
    found = inspect(bind).get_multi_foreign_keys(schema=table.schema)
    return [
        f"{name}.{', '.join(key['constrained_columns'])} (constraint {key['name']!r})"
        for (_schema, name), keys in found.items()
        for key in keys
        if key["referred_table"] == table.name
    ]
