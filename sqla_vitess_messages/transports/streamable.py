"""Which attributes of a model a stream can't bring: it consists of plain columns, in UTF-8."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Table, func, inspect, select, table
from sqlalchemy import column as sql_column
from sqlalchemy.orm import class_mapper

from ..rows.message import NEXT_DUE_ATTRIBUTE, Message, queue_table
from ..table.options import CommentOptions

__all__ = ["find_unstreamable"]

UTF8 = frozenset((None, "ascii", "utf8", "utf8mb3", "utf8mb4"))
"""The character sets whose bytes are UTF-8, and None: of columns that aren't text.

Vitess streams a new row with the bytes of the binary log: text in its column's character set, and
no sign of which that is. Rows that its poller finds are in UTF-8.
"""

_COLUMNS = table(
    "columns",
    *(
        sql_column(name)
        for name in ("table_schema", "table_name", "column_name", "data_type", "character_set_name")
    ),
    schema="information_schema",
)


def find_unstreamable(connection: Connection, model: type[Message]) -> list[str]:
    """Return what of a model a stream can't bring, each with the reason; mostly nothing.

    :param connection: to Vitess, which has the queue's table.
    """
    queue = queue_table(model)
    streamed = _streamed_names(connection, queue)
    names = {column.name for column in queue.columns}
    charsets = _charsets(connection, queue)
    found = []
    for attribute in class_mapper(model).column_attrs:
        for part in attribute.columns:
            if not isinstance(part, Column) or part.table is not queue:
                found.append(f"{attribute.key} (an expression)")
            elif part.key != part.name and part.key in names:
                # SQLAlchemy, given a text, looks for a column by its key as well.
                found.append(f"{attribute.key} (its column's key is another column's name)")
            elif part.name not in streamed and attribute.key != NEXT_DUE_ATTRIBUTE:
                found.append(f"{attribute.key} (not in the message_cols of the table's comment)")
            elif _has_expression(part, connection):
                found.append(f"{attribute.key} (its type reads it by an expression)")
            elif (charset := charsets.get(part.name)) not in UTF8:
                found.append(f"{attribute.key} (its column's character set is {charset})")
    return found


def _streamed_names(connection: Connection, queue: Table) -> tuple[str, ...]:
    comment = inspect(connection).get_table_comment(queue.name, queue.schema)["text"]
    return CommentOptions.from_comment(comment or "").message_cols or ()


def _charsets(connection: Connection, queue: Table) -> dict[str, str | None]:
    """Return the character set of each column whose text is streamed as it is stored."""
    columns = _COLUMNS.c
    statement = select(columns.column_name, columns.character_set_name).where(
        columns.table_schema == (queue.schema or func.database()),
        columns.table_name == queue.name,
        columns.data_type.not_in(["enum", "set"]),  # Stored as numbers.
    )
    return {row.column_name: row.character_set_name for row in connection.execute(statement)}


def _has_expression(part: Column[Any], connection: Connection) -> bool:
    type_: Any = part.type.dialect_impl(connection.dialect)
    return type_.column_expression(part) is not None
