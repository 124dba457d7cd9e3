"""Run something when a connection's transaction commits, and not when it rolls back.

Savepoints count: what was asked for inside one that rolls back is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

__all__ = ["Commit", "on_commit"]

A = TypeVar("A")


class Commit:
    """A COMMIT that is about to be sent. SQLAlchemy has no event for its end, so this is asked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transaction = connection.get_transaction()
        self._failed = False

    @property
    def is_over(self) -> bool:
        """Whether the server has answered."""
        return self._failed or self._connection.get_transaction() is not self._transaction

    @property
    def succeeded(self) -> bool:
        """Whether the server has answered that it committed."""
        return self.is_over and not self._failed

    def fail(self) -> None:
        """Note an error, if the server hasn't answered yet."""
        self._failed = not self.is_over or self._failed


class _Pending:
    """What is to run when one connection commits."""

    def __init__(self, connection: Connection) -> None:
        self._calls: list[tuple[Callable[[Any, Commit], None], Any]] = []
        self._savepoints: list[int] = []
        # Weak, because a commit holds the connection, which holds what is pending.
        self._commit: Callable[[], Commit | None] = lambda: None
        event.listen(connection, "commit", self._on_commit)
        event.listen(connection, "rollback", self._on_rollback)
        event.listen(connection, "savepoint", self._on_savepoint)
        event.listen(connection, "release_savepoint", self._on_release_savepoint)
        event.listen(connection, "rollback_savepoint", self._on_rollback_savepoint)

    def add(self, call: Callable[[A, Commit], None], argument: A) -> None:
        self._calls.append((call, argument))

    def fail(self) -> None:
        commit = self._commit()
        if commit is not None:
            commit.fail()

    def _on_commit(self, connection: Connection) -> None:
        calls, self._calls = self._calls, []
        self._savepoints.clear()
        if calls:
            commit = Commit(connection)
            self._commit = ref(commit)
            for call, argument in calls:
                call(argument, commit)

    def _on_rollback(self, _connection: Connection) -> None:
        self._calls.clear()
        self._savepoints.clear()

    def _on_savepoint(self, _connection: Connection, _name: None) -> None:
        self._savepoints.append(len(self._calls))

    def _on_release_savepoint(self, *_event: object) -> None:
        self._end_savepoint()

    def _on_rollback_savepoint(self, *_event: object) -> None:
        del self._calls[self._end_savepoint() :]

    def _end_savepoint(self) -> int:
        """Return how many calls there were when the innermost savepoint began.

        One that began before the first call was added holds all the calls there are.
        """
        return self._savepoints.pop() if self._savepoints else 0


_pending: WeakKeyDictionary[Connection, _Pending] = WeakKeyDictionary()


def on_commit(connection: Connection, call: Callable[[A, Commit], None], argument: A) -> None:
    """Call ``call(argument, commit)`` when the connection's present transaction commits."""
    pending = _pending.get(connection)
    if pending is None:
        pending = _pending[connection] = _Pending(connection)
    pending.add(call, argument)


@event.listens_for(Engine, "handle_error")
def _on_error(context: ExceptionContext) -> None:
    """Note a COMMIT that failed: no other event tells."""
    pending = None if context.connection is None else _pending.get(context.connection)
    if pending is not None:
        pending.fail()
