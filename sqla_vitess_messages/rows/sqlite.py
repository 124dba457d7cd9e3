"""Keep transactions whole in which a savepoint or a WITH comes first, on all SQLite engines.

Python's sqlite3 sends BEGIN before the first statement that begins with INSERT, UPDATE, DELETE or
REPLACE. A savepoint before that is a transaction of its own for SQLite, which commits when the
savepoint is released. ``WITH … UPDATE`` commits by itself. A rollback of the outer transaction then
left messages and effects where they were.

DDL in front commits by itself, too, and is left alone: an application may rely on it, as where a
migration sends a PRAGMA next, which does nothing inside a transaction.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.pool import Pool

__all__ = [
    "begin_before_writing",
    "commits_each_statement",
    "is_in_transaction",
    "own_connection",
    "use_legacy_mode",
]

_DIALECT = "sqlalchemy.dialects.sqlite.base"

_LEGACY = -1
"""``sqlite3.LEGACY_TRANSACTION_CONTROL``, the one mode of Python 3.11 and the default since."""

_NEEDS_BEGIN = re.compile(
    r"""(?: \s | --[^\n]* | /\*.*?\*/ )*+  # Nothing but space and comments.
    (?: SAVEPOINT\b | WITH\b .*? \b(?:INSERT|UPDATE|DELETE|REPLACE(?!\s*\()) \b )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""What sqlite3 doesn't recognise as a statement that writes. A query with WITH doesn't match,
unless it has such a word, and then begins the transaction in which it is anyway."""


def begin_before_writing(cursor: DBAPICursor, statement: str, *arguments: Any) -> None:
    """Send the BEGIN that sqlite3 leaves out, where it is sqlite3 that begins transactions.

    :param arguments: the last one is the execution context.
    """
    if _NEEDS_BEGIN.match(statement):
        context: ExecutionContext = arguments[-1]
        driver: Any = context.root_connection.connection.driver_connection
        level = getattr(driver, "isolation_level", None)
        if level is not None and _is_legacy(driver) and not is_in_transaction(driver):
            cursor.execute(f"BEGIN {level}")


def commits_each_statement(driver: Any) -> bool:
    """Return whether each statement of a connection commits by itself from now on.

    :param driver: a connection of sqlite3, or of a driver that resembles it.
    """
    if is_in_transaction(driver):
        return False
    return driver.isolation_level is None or not _is_legacy(driver)


def is_in_transaction(driver: Any) -> bool:
    """Return whether a connection has begun a transaction. A closed one hasn't."""
    try:
        return bool(driver.in_transaction)
    except ValueError:  # aiosqlite's, which is no error of the database API.
        return False


def use_legacy_mode(driver: Any) -> None:
    """Have ``isolation_level`` determine when a connection begins a transaction."""
    if not _is_legacy(driver):
        own_connection(driver).autocommit = _LEGACY


def _is_legacy(driver: Any) -> bool:
    """Return whether ``isolation_level`` determines when a connection begins a transaction.

    With Python 3.12's ``autocommit=False`` it always has one, with ``autocommit=True`` never.
    """
    found: int = getattr(own_connection(driver), "autocommit", _LEGACY)
    return found == _LEGACY


def own_connection(driver: Any) -> Any:
    """Return sqlite3's own connection, which that of aiosqlite wraps."""
    return getattr(driver, "_conn", driver)


def _listen(*_event: object) -> None:
    """Listen on the dialect, once there is one: importing it takes a tenth of this library's time.

    A listener on the class Engine would make each statement of every engine slower, by 4 µs; this
    one makes those on SQLite slower by 0.5 µs.
    """
    module = sys.modules.get(_DIALECT)
    if module is not None:
        for name in ("do_execute", "do_execute_no_params", "do_executemany"):
            if not event.contains(module.SQLiteDialect, name, begin_before_writing):
                event.listen(module.SQLiteDialect, name, begin_before_writing)


event.listen(Pool, "connect", _listen)
_listen()
