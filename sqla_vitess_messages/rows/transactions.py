"""Run something when a connection's transaction commits, and not when it rolls back.

Savepoints count: what was asked for inside one that rolls back is forgotten. A transaction with a
two-phase commit counts as well.

All of this runs inside of the user's COMMIT or ROLLBACK, before it is sent. An exception would keep
it from being sent, and the connection would return to the pool with the transaction open, which
the next one commits. So exceptions are logged instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.base import OptionEngine

from ..logs import get_logger
from ..vitess.server import is_sqlite
from . import sqlite

__all__ = [
    "Commit",
    "call_at_commit",
    "call_guarded",
    "commits_each_statement",
    "listen_to",
    "pending_arguments",
]

A = TypeVar("A")
P = ParamSpec("P")

log = get_logger(__name__)


def call_guarded(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function, and log its exception."""
    try:
        call(*args, **kwargs)
    except Exception:
        log.exception("ignored, so that the transaction can end")


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

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[Any, Commit], None], Any]] = []
        self._savepoints: list[int] = []
        # Weak, because a commit holds the connection, which holds what is pending.
        self._commit: Callable[[], Commit | None] = lambda: None

    def add(self, call: Callable[[A, Commit], None], argument: A) -> None:
        self._calls.append((call, argument))

    @property
    def arguments(self) -> list[Any]:
        return [argument for _call, argument in self._calls]

    def fail(self) -> None:
        commit = self._commit()
        if commit is not None:
            commit.fail()

    def commit(self, connection: Connection) -> None:
        calls, self._calls = self._calls, []
        self._savepoints.clear()
        if calls:
            commit = Commit(connection)
            self._commit = ref(commit)
            for call, argument in calls:
                call_guarded(call, argument, commit)

    def roll_back(self) -> None:
        self._calls.clear()
        self._savepoints.clear()

    def begin_savepoint(self) -> None:
        self._savepoints.append(len(self._calls))

    def release_savepoint(self) -> None:
        self._end_savepoint()

    def roll_back_savepoint(self) -> None:
        del self._calls[self._end_savepoint() :]

    def _end_savepoint(self) -> int:
        """Return how many calls there were when the innermost savepoint began.

        One that began before the first call was added holds all the calls there are.
        """
        return self._savepoints.pop() if self._savepoints else 0


_pending: WeakKeyDictionary[Connection, _Pending] = WeakKeyDictionary()


def call_at_commit(connection: Connection, call: Callable[[A, Commit], None], argument: A) -> None:
    """Call ``call(argument, commit)`` when the connection's present transaction commits."""
    pending = _pending.get(connection)
    if pending is None:
        listen_to(connection.engine)
        pending = _pending[connection] = _Pending()
    pending.add(call, argument)


def pending_arguments(connection: Connection) -> list[Any]:
    """Return the arguments of the calls to come when the present transaction commits."""
    pending = _pending.get(connection)
    return [] if pending is None else pending.arguments


def commits_each_statement(connection: Connection) -> bool:
    """Return whether each statement commits by itself, as with the isolation level AUTOCOMMIT.

    The driver knows: autocommit may also be among its own arguments.
    """
    driver: Any = connection.connection.driver_connection
    if is_sqlite(connection.dialect):
        return sqlite.commits_each_statement(driver)
    mode: bool | None = getattr(driver, "autocommit_mode", None)
    if mode is None and hasattr(driver, "get_autocommit"):
        mode = bool(driver.get_autocommit())
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT" or bool(mode)


_listened: WeakSet[Engine] = WeakSet()

_listening = threading.Lock()


def listen_to(engine: Engine) -> None:
    """Listen for the end of an engine's transactions, before several threads use it.

    SQLAlchemy may lose a listener that is added while another thread commits for the first time.

    To listen on each connection takes longer than its transaction's statements. To listen on all
    engines makes each statement of every one slower, by 10 µs.
    """
    while isinstance(engine, OptionEngine):  # It has the events of the one that it was made of.
        engine = engine._proxied
    if engine in _listened:
        return
    with _listening:
        for name, listener in _LISTENERS.items():
            if not event.contains(engine, name, listener):
                event.listen(engine, name, listener)
        # Not on the engine: its copies share the dialect, and each would add the listener again.
        if not event.contains(engine.dialect, "handle_error", _on_error):
            event.listen(engine.dialect, "handle_error", _on_error)
        _listened.add(engine)  # Last, as the others don't wait from now on.


def _guarded(listener: Callable[P, None]) -> Callable[P, None]:
    @wraps(listener)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        call_guarded(listener, *args, **kwargs)

    return guarded


@_guarded
def _on_commit(connection: Connection, *_two_phase: object) -> None:
    if (pending := _pending.get(connection)) is not None:
        pending.commit(connection)


@_guarded
def _on_rollback(connection: Connection, *_two_phase: object) -> None:
    if (pending := _pending.get(connection)) is not None:
        pending.roll_back()


@_guarded
def _on_savepoint(connection: Connection, _name: str) -> None:
    if (pending := _pending.get(connection)) is not None:
        pending.begin_savepoint()


@_guarded
def _on_release_savepoint(connection: Connection, *_event: object) -> None:
    if (pending := _pending.get(connection)) is not None:
        pending.release_savepoint()


@_guarded
def _on_rollback_savepoint(connection: Connection, *_event: object) -> None:
    if (pending := _pending.get(connection)) is not None:
        pending.roll_back_savepoint()


@_guarded
def _on_error(context: ExceptionContext) -> None:
    """Note a COMMIT that failed: no other event tells."""
    pending = None if context.connection is None else _pending.get(context.connection)
    if pending is not None:
        pending.fail()


_LISTENERS: dict[str, Callable[..., None]] = {
    "commit": _on_commit,
    "commit_twophase": _on_commit,
    "rollback": _on_rollback,
    "rollback_twophase": _on_rollback,
    "savepoint": _on_savepoint,
    "release_savepoint": _on_release_savepoint,
    "rollback_savepoint": _on_rollback_savepoint,
}
