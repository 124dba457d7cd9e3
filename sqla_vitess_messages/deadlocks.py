"""Do a transaction again that MySQL chose to end a deadlock, as it asks its users to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

__all__ = ["ATTEMPTS", "despite_deadlocks", "is_deadlock"]

T = TypeVar("T")

ATTEMPTS = 5

_DEADLOCK = 1213
"""MySQL's number of the error."""


def is_deadlock(error: DBAPIError) -> bool:
    """Say whether a transaction was rolled back to end a deadlock, and may be done again."""
    return error.orig is not None and error.orig.args[:1] == (_DEADLOCK,)


def despite_deadlocks(transaction: Callable[[], T]) -> T:
    """Call what is one transaction, again if it was chosen to end a deadlock.

    :raises sqlalchemy.exc.DBAPIError: when that happens :data:`ATTEMPTS` times in succession.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return transaction()
        except DBAPIError as error:
            if not is_deadlock(error):
                raise
    return transaction()
