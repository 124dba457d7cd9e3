"""Repeat a transaction that failed for a passing reason, as databases ask their users to do.

MySQL rolls a transaction back to end a deadlock, or because it has waited for a lock for too long.
SQLite, which allows one writer at a time, refuses one as "database is locked".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import exc

from ..vitess.refusals import is_refusal

__all__ = ["is_deadlock", "is_lock_timeout", "is_refused", "is_transient", "retry_transaction"]

T = TypeVar("T")

ATTEMPTS = 5

REPEATED_FOR = 2.0
"""Seconds until :func:`retry_transaction` gives up: a lock that was waited for so long already
needs more than a repetition at once."""

_LOCK_TIMEOUT = (1205,)
_DEADLOCK = (1213,)
"""MySQL's numbers of the errors for a lock that wasn't released in time, and for a deadlock."""

_SHUTDOWN = (1053,)
"""The number of the error for a statement that comes while the server shuts down."""

_SQLITE = (5, 6)
"""SQLITE_BUSY and SQLITE_LOCKED. Extended codes have them in the lower eight bits."""


def is_deadlock(error: exc.DBAPIError) -> bool:
    """Return whether MySQL has rolled a transaction back to end a deadlock."""
    return error.orig is not None and error.orig.args[:1] == _DEADLOCK


def is_lock_timeout(error: exc.DBAPIError) -> bool:
    """Return whether a statement on MySQL met a row that another transaction has locked for long.

    The transaction goes on without the statement.
    """
    return error.orig is not None and error.orig.args[:1] == _LOCK_TIMEOUT


def is_refused(error: BaseException) -> bool:
    """Return whether the database has not executed a statement, because it can't at the moment.

    So the statement is not the reason, as it might be of a connection that is lost meanwhile. To
    repeat the transaction makes sense only after a while.
    """
    if not isinstance(error, exc.DBAPIError) or error.orig is None:
        return False
    return error.orig.args[:1] == _SHUTDOWN or is_refusal(error)


def is_transient(error: BaseException) -> bool:
    """Return whether a transaction failed only because others ran at the same time.

    So does one for which the Engine's pool had no connection in time.
    """
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        if is_deadlock(error) or is_lock_timeout(error):
            return True
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE
    return isinstance(error, exc.TimeoutError)


def retry_transaction(transaction: Callable[[], T]) -> T:
    """Call what is one transaction, and again at once when it failed for a passing reason.

    :raises sqlalchemy.exc.SQLAlchemyError: when that happens :data:`ATTEMPTS` times in succession,
        or for :data:`REPEATED_FOR` seconds.
    """
    give_up_at = time.monotonic() + REPEATED_FOR
    for _ in range(ATTEMPTS - 1):
        try:
            return transaction()
        except (exc.DBAPIError, exc.TimeoutError) as error:
            if not is_transient(error) or time.monotonic() > give_up_at:
                raise
    return transaction()
