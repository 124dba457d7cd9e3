"""Refuse a table that can't be a working queue, before any DDL is sent.

One malformed message table stops schema reloading for its whole Vitess tablet.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Integer, Table, event

from ..errors import InvalidQueue
from ..vitess.server import is_vitess, vitess_major
from .keys import check_key
from .layouts import LAYOUTS, LayoutSpec
from .options import (
    FORBIDDEN_IN_NAMES,
    MARK,
    CommentOptions,
    Layout,
    QueueOptions,
    is_queue,
    queue_options,
)
from .unique import REVISION, UNSTREAMED

__all__ = [
    "VITESS_REQUIRES",
    "check_columns",
    "check_layout",
    "check_message_cols",
    "check_message_table",
    "check_schema",
    "check_shard_columns",
]

VITESS_REQUIRES = ("id", "priority", "epoch", "time_next", "time_acked")
"""The columns without which Vitess 6 and newer can't load a message table."""


def check_columns(table: Table, layout: LayoutSpec) -> None:
    """Check that a table has its layout's columns first, its key, and a valid payload.

    :raises InvalidQueue: with what is wrong and the remedy.
    """
    names = [column.name for column in table.columns]
    count = len(layout.columns)
    if tuple(names[:count]) != layout.columns:
        raise InvalidQueue(
            f"table {table.name!r}: its first columns are {', '.join(names[:count])}; expected "
            f"{', '.join(layout.columns)}. Don't define columns of these names, nor give a "
            "column a sort_order below -1000000"
        )
    for column in table.columns:
        if column.name in layout.columns:
            if column.key != column.name:
                raise InvalidQueue(
                    f"column {column.name!r} of table {table.name!r}: has the key {column.key!r}; "
                    "leave that out"
                )
            if not isinstance(column.type, Integer):
                raise InvalidQueue(
                    f"column {column.name!r} of table {table.name!r}: is {column.type!r}, and "
                    "must be the mixin's own; don't redefine it"
                )
        else:
            _check_payload(table, column, layout)
    key = tuple(column.name for column in table.primary_key.columns)
    if key != layout.primary_key:
        raise InvalidQueue(
            f"table {table.name!r}: its primary key is ({', '.join(key)}) and must be "
            f"({', '.join(layout.primary_key)}); take primary_key=True off the payload columns"
        )


def _check_payload(table: Table, column: Column[Any], layout: LayoutSpec) -> None:
    reserved = {*layout.columns, *VITESS_REQUIRES}
    if column.name.lower() in reserved:
        raise InvalidQueue(
            f"column {column.name!r} of table {table.name!r}: the name belongs to the queue "
            "(MySQL ignores the case of column names); choose another"
        )
    if column.key in reserved:
        raise InvalidQueue(
            f"column {column.name!r} of table {table.name!r}: its key {column.key!r} belongs to "
            "the queue; choose another"
        )
    if any(mark in column.name for mark in FORBIDDEN_IN_NAMES):
        raise InvalidQueue(
            f"column {column.name!r} of table {table.name!r}: {' '.join(FORBIDDEN_IN_NAMES)} "
            "can't stand in the name, because they separate the parts of the table comment"
        )


def check_message_cols(table: Table, layout: LayoutSpec, options: QueueOptions) -> None:
    """Check that the streamed columns exist and include what a settlement needs.

    :raises InvalidQueue: with the columns that don't exist or are missing.
    """
    names = options.message_cols or ()
    known = {column.name for column in table.columns if UNSTREAMED not in column.info}
    if unknown := [name for name in names if name not in known]:
        raise InvalidQueue(
            f"message_cols of table {table.name!r}: it has no column {', '.join(unknown)}; "
            "Vitess would stop reloading the schema"
        )
    needed = {"epoch", *layout.primary_key, *(options.shard_by or ())}
    if options.unique_by:
        needed.add(REVISION)
    if missing := sorted(needed - set(names)):
        raise InvalidQueue(
            f"message_cols of table {table.name!r}: lacks {', '.join(missing)}, without which a "
            "received message can't be settled"
        )


def check_shard_columns(table: Table, options: QueueOptions) -> None:
    """Check that the columns of ``shard_by`` can determine a row's shard.

    :raises InvalidQueue: for one that doesn't exist, belongs to the queue, or may be NULL.
    """
    check_key(
        table,
        "shard_by",
        options.shard_by or (),
        unfit={*LAYOUTS[options.layout].columns} - {"id"},
        because="can't determine the shard; name payload columns, or 'id'",
        if_null="then belongs to no shard",
    )


@event.listens_for(Table, "before_create")
def _check_before_create(table: Table, connection: Connection | None, **_kw: Any) -> None:
    """Refuse a message table that would harm the tablet, whoever defined it."""
    check_message_table(table)
    if is_queue(table):
        check_schema(connection, table)
        check_layout(connection, table.name, queue_options(table).layout)


def check_schema(connection: Connection | None, table: Table) -> None:
    """Check that a table isn't in a keyspace that its columns would be qualified with.

    Source: vtgate leaves the keyspace out of a table's name, and not out of the columns' names. The
    tablet then knows no such column (error 1054).

    :raises InvalidQueue: for a table with a schema, be it of an engine's ``schema_translate_map``.
    """
    if connection is None or not is_vitess(connection):
        return
    if (schema := connection.schema_for_object(table)) is not None:
        raise InvalidQueue(
            f"table {table.name!r}: its schema is {schema!r}, and Vitess refuses statements whose "
            "columns are qualified with a keyspace; leave the schema out, and connect to that "
            f"keyspace, with a URL that ends in /{schema}"
        )


def check_layout(connection: Connection | None, name: str, layout: Layout) -> None:
    """Check that a server accepts a table of this layout.

    :raises InvalidQueue: for the classic layout on Vitess 6 or newer.
    """
    if (
        layout == "classic"
        and connection is not None
        and is_vitess(connection)
        and vitess_major(connection) >= 6
    ):
        raise InvalidQueue(
            f"table {name!r}: the classic layout has no priority column, without which "
            "Vitess 6 and newer stop reloading the schema; use layout='portable'"
        )


def check_message_table(table: Table) -> None:
    """Check a table whose comment marks it as a message table, whoever defined it.

    :raises InvalidQueue: when Vitess could not work with it.
    """
    if not table.comment or MARK not in table.comment:
        return
    comment = CommentOptions.from_comment(table.comment)
    if is_queue(table) and queue_options(table).layout == "classic":
        return
    names = [column.name for column in table.columns]
    if missing := [name for name in VITESS_REQUIRES if name not in names]:
        raise InvalidQueue(f"table {table.name!r}: lacks the columns {', '.join(missing)}")
    if unknown := [name for name in comment.message_cols or () if name not in names]:
        raise InvalidQueue(f"table {table.name!r}: has no column {', '.join(unknown)} to stream")
