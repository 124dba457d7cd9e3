"""Why a message failed: as text that is safe to make, and that its column can store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.types import TypeDecorator, TypeEngine

from ..table.options import column_named
from ..texts import encodable
from ..vitess.server import is_mysql

__all__ = ["REASON_COLUMN", "describe_error", "may_be_the_cause", "storable", "text_of"]

REASON_COLUMN = "fail_reason"
"""The column in which a model that has it keeps why a message failed."""

_TEXT_BYTES = {
    "TINYTEXT": 255,
    "TEXT": 65_535,
    "UNICODE_TEXT": 65_535,  # SQLAlchemy's name for the same.
    "MEDIUMTEXT": 2**24 - 1,
    "LONGTEXT": 2**32 - 1,
}
"""How many bytes MySQL's types hold. A VARCHAR's length is in characters instead."""


def text_of(error: BaseException) -> str:
    """Return the text of an exception, whose ``__str__`` may itself fail.

    A character that can't be encoded, which no log file would take, is written as its code.
    """
    try:
        return encodable(str(error))
    except BaseException as failure:  # noqa: BLE001  # User code, which may raise anything.
        return f"without a text, because its __str__ raised {type(failure).__name__}"


def describe_error(error: BaseException) -> str:
    """Return the class and the text of an exception."""
    return f"{type(error).__name__}: {text_of(error)}"


def storable(table: Table, reason: str | None, dialect: Dialect) -> Iterator[dict[str, str]]:
    """Yield the values to store for a reason, from the best to none at all.

    :param reason: any text. It is cut to the length of its column, in the column's unit, and
        characters that can't be encoded are replaced.
    """
    column = column_named(table, REASON_COLUMN)
    if reason is not None and column is not None:
        clean = encodable(reason).replace("\0", "\\0")
        type_ = _database_type(column.type, dialect)
        yield {column.key: _cut(clean, type_, dialect)}
        # The column's character set may lack some characters.
        yield {column.key: _cut(clean.encode("ascii", "backslashreplace").decode(), type_, dialect)}
    yield {}


def may_be_the_cause(error: Exception) -> bool:
    """Return whether a statement may have failed because of a reason's text."""
    if not isinstance(error, DBAPIError):
        return True  # The text could not be made a parameter.
    # None of these ends the transaction, so that another statement may follow.
    kinds = DataError | ProgrammingError | IntegrityError
    return not error.connection_invalidated and isinstance(error, kinds)


def _database_type(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    found = type_.dialect_impl(dialect)
    while isinstance(found, TypeDecorator):
        found = found.impl_instance
    return found


def _cut(text: str, type_: TypeEngine[Any], dialect: Dialect) -> str:
    length: int | None = getattr(type_, "length", None)
    text = text[:length]
    if is_mysql(dialect):
        most = _TEXT_BYTES.get(type_.__visit_name__.upper())
        if most is not None:
            text = text.encode()[:most].decode("utf-8", "ignore")
    return text
