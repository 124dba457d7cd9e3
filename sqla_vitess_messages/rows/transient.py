"""Repeat a transaction that MySQL rolled back to end a deadlock, as it asks its users to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

__all__ = ["is_deadlock", "retry_on_deadlock"]

T = TypeVar("T")

ATTEMPTS = 5

_DEADLOCK = 1213
"""MySQL's error number."""


def is_deadlock(error: DBAPIError) -> bool:
    """Return whether a transaction was rolled back to end a deadlock, and may be repeated."""
    return error.orig is not None and error.orig.args[:1] == (_DEADLOCK,)


def retry_on_deadlock(transaction: Callable[[], T]) -> T:
    """Call what is one transaction, and again when it was chosen to end a deadlock.

    :raises sqlalchemy.exc.DBAPIError: when that happens :data:`ATTEMPTS` times in succession.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return transaction()
        except DBAPIError as error:
            if not is_deadlock(error):
                raise
    return transaction()
