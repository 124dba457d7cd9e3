"""Run something when a connection's transaction commits, and not when it rolls back.

Savepoints count: what was asked for inside one that rolls back is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event

A = TypeVar("A")


class _Pending:
    """What is to run when one connection commits."""

    def __init__(self, connection: Connection) -> None:
        self._calls: list[tuple[Callable[[Any], None], Any]] = []
        self._savepoints: list[int] = []
        event.listen(connection, "commit", self._commit)
        event.listen(connection, "rollback", self._rollback)
        event.listen(connection, "savepoint", self._savepoint)
        event.listen(connection, "release_savepoint", self._release_savepoint)
        event.listen(connection, "rollback_savepoint", self._rollback_savepoint)

    def add(self, call: Callable[[A], None], argument: A) -> None:
        self._calls.append((call, argument))

    def _commit(self, _connection: Connection) -> None:
        # At "commit" the statement is about to be sent; should it fail, the calls have run too
        # early, and all of them only free a place or look at the table again.
        calls, self._calls = self._calls, []
        self._savepoints.clear()
        for call, argument in calls:
            call(argument)

    def _rollback(self, _connection: Connection) -> None:
        self._calls.clear()
        self._savepoints.clear()

    def _savepoint(self, _connection: Connection, _name: None) -> None:
        self._savepoints.append(len(self._calls))

    def _release_savepoint(self, *_event: object) -> None:
        self._end_savepoint()

    def _rollback_savepoint(self, *_event: object) -> None:
        del self._calls[self._end_savepoint() :]

    def _end_savepoint(self) -> int:
        """Return how many calls there were when the innermost savepoint began.

        One that began before the first call was added holds all the calls there are.
        """
        return self._savepoints.pop() if self._savepoints else 0


_pending: WeakKeyDictionary[Connection, _Pending] = WeakKeyDictionary()


def after_commit(connection: Connection, call: Callable[[A], None], argument: A) -> None:
    """Call ``call(argument)`` when the connection's present transaction commits."""
    pending = _pending.get(connection)
    if pending is None:
        pending = _pending[connection] = _Pending(connection)
    pending.add(call, argument)
