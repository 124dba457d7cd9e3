"""Notice within milliseconds what any connection, of any process, commits to a SQLite database.

``PRAGMA data_version`` changes with every commit by another connection, and takes 5 µs. A thread
for each database asks for it on a connection of its own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Table

from ..forking import call_in_child
from ..logs import get_logger
from ..rows.sqlite import own_connection
from ..vitess.server import is_sqlite

__all__ = ["CommitWatch", "database_file", "watch_commits"]

log = get_logger(__name__)

BUSY_INTERVAL = 0.002
"""Seconds between two checks soon after a commit."""

IDLE_INTERVAL = 0.005
"""Seconds between two checks otherwise: to wake up costs most, about 60 µs each time."""

BUSY_FOR = 1.0
"""Seconds for which a file counts as busy after a commit."""


def database_file(connection: Connection, table: Table) -> str | None:
    """Return the file of a SQLite database that has a table; None if there is nothing to watch.

    Only files that Python's own SQLite has open can be watched: another copy of the library, as
    drivers for encrypted files have, would lose its locks on the file.
    """
    if not is_sqlite(connection.dialect):
        return None
    if not isinstance(own_connection(connection.connection.driver_connection), sqlite3.Connection):
        return None
    schema = connection.schema_for_object(table) or "main"
    databases = connection.exec_driver_sql("PRAGMA database_list").all()
    return next((file for _number, name, file in databases if name == schema), None)


class CommitWatch:
    """Calls a function soon after each commit to a file, until it is closed.

    :param call: may be called when nothing has changed, too. From a thread of its own.
    """

    def __init__(self, watcher: _Watcher, call: Callable[[], object]) -> None:
        self._watcher = watcher
        self.call = call

    @property
    def is_alive(self) -> bool:
        """Whether commits are noticed: the file may have become unreadable."""
        return _watchers.get(self._watcher.file) is self._watcher

    def close(self) -> None:
        """Call the function no more."""
        with _lock:
            self._watcher.watches.discard(self)


def watch_commits(file: str, call: Callable[[], object]) -> CommitWatch:
    """Call a function soon after each commit to a file: see :class:`CommitWatch`."""
    with _lock:
        watcher = _watchers.get(file)
        if watcher is None:
            watcher = _watchers[file] = _Watcher(file)
        watch = CommitWatch(watcher, call)
        watcher.watches.add(watch)
    return watch


class _Watcher:
    """Watches a file as long as there is anybody to call."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.watches: set[CommitWatch] = set()
        threading.Thread(target=self._run, name="SqliteWatch", daemon=True).start()

    def _run(self) -> None:
        try:
            # Without a wait for locks: who holds one is about to change the version.
            address = f"{Path(self.file).as_uri()}?mode=rw"
            with closing(sqlite3.connect(address, timeout=0, uri=True)) as connection:
                self._watch(connection)
        except sqlite3.Error as error:
            log.info("commits to %s are noticed by polling alone: %s", self.file, error)
        finally:
            with _lock:
                if _watchers.get(self.file) is self:
                    del _watchers[self.file]

    def _watch(self, connection: sqlite3.Connection) -> None:
        # Unknown at first, so that the first check calls: a commit may have come before it.
        version: int | None = None
        busy_until = 0.0
        while watches := self._current_watches():
            if version != (version := _data_version(connection)):
                busy_until = time.monotonic() + BUSY_FOR
                for watch in watches:
                    watch.call()
            time.sleep(BUSY_INTERVAL if time.monotonic() < busy_until else IDLE_INTERVAL)

    def _current_watches(self) -> list[CommitWatch]:
        with _lock:
            if not self.watches:
                _watchers.pop(self.file, None)  # Nobody joins a watcher that ends.
            return list(self.watches)


def _data_version(connection: sqlite3.Connection) -> int | None:
    """Return the version of a database; None while another connection has locked it."""
    try:
        found: int = connection.execute("PRAGMA data_version").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    return found


_lock = threading.Lock()
_watchers: dict[str, _Watcher] = {}


def _begin_anew() -> None:
    """Forget, in a forked process, the threads that exist only in its parent."""
    global _lock, _watchers
    _lock, _watchers = threading.Lock(), {}


call_in_child(_begin_anew)
