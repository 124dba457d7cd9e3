"""Code can wait until messages are settled, in threads and in coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from sqla_vitess_messages import Discard, InvalidArgument, InvalidArgumentType, Retry
from sqla_vitess_messages.aio import wait
from tests.backends import BACKENDS, Backend, ack, async_url, pulling_in_threads

Wait = Callable[..., list[str]]


def enqueue(engine: Engine, *messages: Any) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add_all(messages)


def wait_in_coroutine(engine: Engine, backend: Backend, queue: type[Any], *arguments: Any) -> Any:
    async def run() -> list[str]:
        driver = "aiosqlite" if backend.server is None else "asyncmy"
        other: AsyncEngine = create_async_engine(async_url(engine.url, driver))
        try:
            return await wait(queue, other, *arguments)
        finally:
            await other.dispose()

    return asyncio.run(run())


@pytest.fixture(params=["threads", "asyncio"])
def waiting(request: pytest.FixtureRequest, engine: Engine, backend: Backend) -> Wait:
    """Return a function that waits for messages of a queue, as ``Model.wait`` does."""
    if request.param == "threads":
        return lambda queue, *arguments: queue.wait(engine, *arguments)
    return lambda queue, *arguments: wait_in_coroutine(engine, backend, queue, *arguments)


@pytest.mark.parametrize(
    "backend",
    [b for b in BACKENDS if b.name in ("sqlite", "mysql", "vitess", "vitess-sharded")],
    indirect=True,
    ids=lambda backend: backend.name,
)
def test_it_returns_the_states_in_order_when_all_are_settled(
    engine: Engine, queue: type[Any], work: Callable[..., Any], waiting: Wait
) -> None:
    def handle(message: Any, _session: Session) -> None:
        if message.body == "dead":
            raise Discard
        if message.attempts == 0:
            raise Retry(0.2)

    bodies = ["acked", "dead", "acked", "cancelled"]
    messages = [queue(body=body) for body in bodies]
    enqueue(engine, *messages)
    with Session(engine) as session, session.begin():
        queue.cancel(session, [messages[3]])
    work(queue, handle)
    mixed = [messages[0], messages[1].id, messages[2], messages[3], messages[0].id]
    assert waiting(queue, mixed, 60) == ["acked", "dead", "acked", "purged", "acked"]
    assert waiting(queue, [2**70, messages[0], -(2**70)], 0) == ["purged", "acked", "purged"]


@pulling_in_threads
def test_it_ends_with_a_timeout_while_one_waits(
    engine: Engine, queue: type[Any], waiting: Wait
) -> None:
    done, later = queue(), queue(deliver_in=3600)
    enqueue(engine, done, later)
    ack(engine, done)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=f"1 of 2 messages of .* after 0.3 s: {later.id}"):
        waiting(queue, [done, later], timedelta(seconds=0.3))
    assert time.monotonic() - started < 10
    assert waiting(queue, [done], 0) == ["acked"]
    assert waiting(queue, [], 0) == []


@pulling_in_threads
def test_it_notices_a_settlement_while_it_waits(engine: Engine, queue: type[Any]) -> None:
    message = queue()
    enqueue(engine, message)
    found: list[list[str]] = []
    polled = threading.Event()
    event.listen(engine, "after_cursor_execute", lambda *_arguments: polled.set())
    waiter = threading.Thread(target=lambda: found.append(queue.wait(engine, [message], 60)))
    waiter.start()
    assert polled.wait(20)
    ack(engine, message)
    waiter.join(20)
    assert found == [["acked"]]


@pulling_in_threads
def test_polls_become_rarer(engine: Engine, queue: type[Any]) -> None:
    message = queue(deliver_in=3600)
    enqueue(engine, message)
    polls: list[float] = []
    event.listen(engine, "after_cursor_execute", lambda *_arguments: polls.append(time.monotonic()))
    with pytest.raises(TimeoutError):
        queue.wait(engine, [message], 2)
    assert 2 < len(polls) < 80  # As often as at first, it would be 400.


def test_many_messages_are_waited_for_in_bounded_statements(
    engine: Engine, make_queue: Callable[..., type[Any]], backend: Backend
) -> None:
    queue = make_queue()
    messages = [queue(deliver_in=60) for _ in range(1_200)]
    enqueue(engine, *messages)
    ids = [message.id for message in messages]
    with Session(engine) as session, session.begin():
        assert queue.cancel(session, queue.state == "scheduled") == 1_200
    assert queue.wait(engine, messages, 20) == ["purged"] * 1_200
    assert queue.wait(engine, ids, 20) == ["purged"] * 1_200


@pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)
def test_bad_arguments_are_refused(engine: Engine, queue: type[Any], url: str) -> None:
    message = queue()
    with pytest.raises(InvalidArgument, match="never enqueued"):
        queue.wait(engine, [message])
    enqueue(engine, message)
    with pytest.raises(TimeoutError):
        queue.wait(url, [message], 0)
    with pytest.raises(InvalidArgumentType, match="timeout='1'"):
        queue.wait(engine, [message], "1")
    with pytest.raises(InvalidArgumentType, match="messages=None"):
        queue.wait(engine, None)
    with pytest.raises(InvalidArgumentType, match="bind=<"):
        queue.wait(Session(engine), [message])
    with pytest.raises(InvalidArgument, match=r"use sqla_vitess_messages\.aio\.wait"):
        queue.wait("sqlite+aiosqlite://", [message])
    with pytest.raises(InvalidArgument, match="expected a database URL"):
        queue.wait("nonsense", [message])
    for bind, kind in ((engine, InvalidArgumentType), ("sqlite://", InvalidArgument)):
        with pytest.raises(kind, match="bind"):
            asyncio.run(wait(queue, bind, [message]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "backend",
    [b for b in BACKENDS if b.name in ("mysql", "mariadb")],
    indirect=True,
    ids=lambda backend: backend.name,
)
def test_a_lost_connection_is_no_end_of_the_wait(engine: Engine, queue: type[Any]) -> None:
    done, later = queue(), queue(deliver_in=3600)
    enqueue(engine, done, later)
    ack(engine, done)
    own = create_engine(engine.url)
    killed: list[int] = []

    def kill_first(connection: Any, *_arguments: object) -> None:
        if killed:
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            [process] = cursor.fetchone()
        with engine.connect() as other:
            other.exec_driver_sql(f"KILL {process}")
        killed.append(process)

    event.listen(own, "checkout", kill_first)
    assert queue.wait(own, [done], 20) == ["acked"]
    assert len(killed) == 1
    own.dispose()


@pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)
def test_a_missing_table_is_an_error_at_once(engine: Engine, queue: type[Any]) -> None:
    message = queue()
    enqueue(engine, message)
    queue.__table__.drop(engine)
    with pytest.raises(OperationalError, match="no such table"):
        queue.wait(engine, [message])
