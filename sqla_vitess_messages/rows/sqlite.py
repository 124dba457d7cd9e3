"""Keep transactions whole in which a savepoint comes first, on every SQLite engine of the process.

Python's sqlite3 sends BEGIN before the first INSERT, UPDATE or DELETE only. A savepoint before that
is a transaction of its own for SQLite, which commits when the savepoint is released: a rollback of
the outer transaction then left messages and effects where they were.
"""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.pool import Pool

__all__ = ["begin_before_savepoint", "commits_each_statement", "use_legacy_mode"]

_DIALECT = "sqlalchemy.dialects.sqlite.base"

_LEGACY = -1
"""``sqlite3.LEGACY_TRANSACTION_CONTROL``, the one mode of Python 3.11 and the default since."""


def begin_before_savepoint(
    cursor: DBAPICursor, statement: str, *parameters_and_context: ExecutionContext
) -> None:
    """Send the BEGIN that sqlite3 leaves out, where it is sqlite3 that begins transactions."""
    if statement.startswith("SAVEPOINT "):
        driver: Any = parameters_and_context[-1].root_connection.connection.driver_connection
        level = getattr(driver, "isolation_level", None)
        if level is not None and _is_legacy(driver) and not driver.in_transaction:
            cursor.execute(f"BEGIN {level}")


def commits_each_statement(driver: Any) -> bool:
    """Return whether each statement of a connection commits by itself from now on.

    :param driver: a connection of sqlite3, or of a driver that resembles it.
    """
    if driver.in_transaction:
        return False
    return driver.isolation_level is None or not _is_legacy(driver)


def use_legacy_mode(driver: Any) -> None:
    """Have ``isolation_level`` determine when a connection begins a transaction."""
    if not _is_legacy(driver):
        _own(driver).autocommit = _LEGACY


def _is_legacy(driver: Any) -> bool:
    """Return whether ``isolation_level`` determines when a connection begins a transaction.

    With Python 3.12's ``autocommit=False`` it always has one, with ``autocommit=True`` never.
    """
    found: int = getattr(_own(driver), "autocommit", _LEGACY)
    return found == _LEGACY


def _own(driver: Any) -> Any:
    """Return sqlite3's own connection, which that of aiosqlite wraps."""
    return getattr(driver, "_conn", driver)


def _listen(*_event: object) -> None:
    """Listen on the dialect, once there is one: importing it takes a tenth of this library's time.

    A listener on the class Engine would make each statement of every engine slower, by 4 µs; this
    one makes those on SQLite slower by 0.5 µs.
    """
    module = sys.modules.get(_DIALECT)
    if module is not None:
        for name in ("do_execute", "do_execute_no_params"):
            if not event.contains(module.SQLiteDialect, name, begin_before_savepoint):
                event.listen(module.SQLiteDialect, name, begin_before_savepoint)


event.listen(Pool, "connect", _listen)
_listen()
