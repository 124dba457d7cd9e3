"""Faults of a connection to the database, for subscribers that have to survive them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.util import greenlet_spawn

from tests.async_adapter import AsyncSubscriberAdapter

__all__ = ["call_transport", "engine_of", "interrupted", "lost_answers", "transport_of"]


def transport_of(subscriber: Any) -> Any:
    """Return the transport of an open subscriber."""
    if isinstance(subscriber, AsyncSubscriberAdapter):
        subscriber = subscriber._subscriber
    return subscriber._loop._transport


def engine_of(subscriber: Any) -> Engine:
    """Return the engine of an open subscriber's own."""
    engine: Engine = transport_of(subscriber)._engine
    return engine


def call_transport(subscriber: Any, name: str, *arguments: Any) -> Any:
    """Call a method of a subscriber's transport, in its event loop if it has one."""
    method: Callable[..., Any] = getattr(transport_of(subscriber), name)
    if isinstance(subscriber, AsyncSubscriberAdapter):
        return subscriber._call(greenlet_spawn(method, *arguments))
    return method(*arguments)


@contextmanager
def lost_answers(
    engine: Engine,
    count: int = 1,
    *,
    committed: bool = True,
    then: Callable[[], object] = lambda: None,
) -> Iterator[list[str]]:
    """Lose the connection when transactions with an UPDATE commit, on an engine or its copies.

    :param count: how many are lost.
    :param committed: whether the server has got the COMMIT, and only its answer is lost.
    :param then: is called when that has happened.
    :return: a list of the last statements of those that were lost.
    """
    dialect = engine.dialect
    execute, commit = dialect.do_execute, dialect.do_commit
    updates: dict[Any, str] = {}
    lost: list[str] = []

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        if statement.startswith("UPDATE"):
            updates[context.root_connection.connection.dbapi_connection] = statement
        execute(cursor, statement, parameters, context)

    def do_commit(connection: Any) -> None:
        statement = updates.pop(connection.dbapi_connection, None)
        if statement is None or len(lost) == count:
            commit(connection)
            return
        lost.append(statement)
        (commit if committed else dialect.do_rollback)(connection)
        connection.invalidate()
        then()
        raise dialect.loaded_dbapi.OperationalError(2013, "Lost connection to MySQL server")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_execute", do_execute)
        patch.setattr(dialect, "do_commit", do_commit)
        yield lost


@contextmanager
def interrupted(engine: Engine, statement: str, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Call a function just before the engine first sends a statement, as if another client had.

    :param statement: how the statement begins.
    """
    calls: list[object] = []

    def note(_connection: Any, _cursor: Any, text: str, *_rest: object) -> None:
        if text.startswith(statement) and not calls:
            calls.append(None)
            meanwhile()

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert calls
