"""Load rows as instances, though some of them can't be loaded.

A row may hold what this process can't read: a member that its Enum lacks, a text that is no JSON,
a value that a TypeDecorator refuses. One such row must not keep back the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from .transient import is_transient

__all__ = ["load_separately", "may_be_a_row"]

R = TypeVar("R")
M = TypeVar("M")


def may_be_a_row(error: Exception) -> bool:
    """Return whether loading may have failed because of a row, and not of the database."""
    if not isinstance(error, DBAPIError):
        return True  # A type's own code, a driver that decodes a value, a listener to "load".
    return not (error.connection_invalidated or is_transient(error))


def load_separately(
    load: Callable[[Sequence[R]], Sequence[M]], rows: Sequence[R]
) -> tuple[list[M], list[tuple[R, Exception]]]:
    """Load rows; if that fails, find by halves those because of which it does.

    :param load: loads some of the rows, or fails.
    :param rows: what identifies them.
    :return: the instances, and the rows that can't be loaded, each with the error.
    :raises sqlalchemy.exc.DBAPIError: when it is the database that fails.
    """
    try:
        return list(load(rows)), []
    except Exception as error:
        if not may_be_a_row(error):
            raise
        if len(rows) == 1:
            return [], [(rows[0], error)]
    middle = len(rows) // 2
    loaded, failed = load_separately(load, rows[:middle])
    more_loaded, more_failed = load_separately(load, rows[middle:])
    return loaded + more_loaded, failed + more_failed
