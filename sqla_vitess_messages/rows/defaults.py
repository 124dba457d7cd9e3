"""The column defaults of a queue: the values of the messages that a Core INSERT enqueues.

SQLAlchemy calls a default with the execution context of the INSERT, for each row. Others call it
without one, such as admin interfaces, to fill the fields of a form before there is a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Insert
from sqlalchemy.engine.default import DefaultExecutionContext

from .. import clock
from ..errors import InvalidArgument
from .enqueue import random_id
from .places import next_place

__all__ = ["default_id", "default_next", "default_place", "default_scheduled", "default_time"]

_statement_times: WeakKeyDictionary[DefaultExecutionContext, int] = WeakKeyDictionary()


def default_id(context: object) -> int:
    """Return a random ``id``, another one for each row.

    :raises InvalidArgument: in an INSERT … SELECT, which evaluates a default once for all rows.
    """
    _refuse_select(context, "id", "all messages would have the same id; select an id")
    return random_id()


def default_place(context: object) -> int:
    """Return the next place of a message among those of its key, another one for each row.

    :raises InvalidArgument: in an INSERT … SELECT, which evaluates a default once for all rows.
    """
    _refuse_select(context, "seq", "the messages would have no order; select a seq")
    return next_place()


def _refuse_select(context: object, column: str, otherwise: str) -> None:
    """Refuse an INSERT … SELECT, which evaluates a default once for all rows.

    :param otherwise: what would become of the messages, and the remedy.
    :raises InvalidArgument: when the statement is one.
    """
    statement = _insert(context)
    if statement is not None and statement.select is not None:
        raise InvalidArgument(
            f"INSERT … SELECT into {statement.table}: the default of {column} is evaluated once, "
            f"so that {otherwise} for each message as well, or execute insert() with a list of rows"
        )


def default_time(context: object) -> int:
    """Return now: one time for all rows and columns of a statement."""
    if not isinstance(context, DefaultExecutionContext):
        return clock.now()
    return _statement_times.setdefault(context, clock.now())


def default_scheduled(context: object) -> int:
    """Return the row's ``time_next`` if the statement has it as a value, else now."""
    given = _given(context, "time_scheduled", "time_next")
    return default_time(context) if given is None or given is _EXPRESSION else int(given)


def default_next(context: object) -> int:
    """Return the row's ``time_scheduled`` if the statement has it, else now.

    :raises InvalidArgument: when it is an SQL expression, whose value only the database knows.
    """
    given = _given(context, "time_next", "time_scheduled")
    if given is _EXPRESSION:
        raise InvalidArgument(
            "time_scheduled is an SQL expression, from which time_next can't be derived: the "
            "message would be due at once; give time_next as well"
        )
    return default_time(context) if given is None else int(given)


_EXPRESSION = object()
"""Stands for a value that the statement has as an SQL expression."""


def _insert(context: object) -> Insert | None:
    """Return the statement of a context; None without a context."""
    if not isinstance(context, DefaultExecutionContext) or context.compiled is None:
        return None
    statement = context.compiled.statement
    return statement if isinstance(statement, Insert) else None


def _given(context: object, column: str, other: str) -> Any:
    """Return what the row for which ``column`` has its default has as ``other``.

    ``get_current_parameters()`` can't tell: of ``insert().values([...])`` it knows only the keys
    of the first row and only literal values, and it fails if the session executes the statement.

    :return: the value, None if it has its default too, or :data:`_EXPRESSION`.
    """
    if not isinstance(context, DefaultExecutionContext) or context.current_parameters is None:
        return None
    # In insert().values([...]) row n has the names of its columns with _m<n>; the first row has
    # them without, where they have their defaults.
    row: str = context.current_column.key.removeprefix(column)
    parameters: Mapping[str, Any] = context.current_parameters
    for name in (other + row,) if row else (other, f"{other}_m0"):
        if name in parameters:
            return parameters[name]
    statement = _insert(context)
    if statement is None or other not in statement.table.c:
        return None
    defaulted = {default.key for default in context.prefetch_cols or ()}
    return None if other + row in defaulted else _EXPRESSION
