"""The helpers for users' own tests, used as in such tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_vitess_messages import Discard, QueueOptions, Retry, RetryPolicy
from sqla_vitess_messages.aio import testing as aio_testing
from sqla_vitess_messages.receiving import draining
from sqla_vitess_messages.testing import Clock, assert_enqueued, drain, enqueued, travelling_clock
from tests.backends import make_queue_class

Sessions = Callable[[MetaData], sessionmaker[Session]]


@pytest.fixture(params=["portable", "minimal"])
def queue(request: pytest.FixtureRequest) -> type[Any]:
    return make_queue_class(QueueOptions(layout=request.param))


@pytest.fixture
def sessions(queue: type[Any], message_sessions: Sessions) -> sessionmaker[Session]:
    return message_sessions(queue.metadata)


def ignore(_message: Any, _session: Session) -> None:
    pass


def test_what_a_session_enqueued_can_be_asserted(
    queue: type[Any], sessions: sessionmaker[Session]
) -> None:
    with sessions() as session:
        session.add_all([queue(body="a"), queue(body="b"), queue(body="b")])
        [message] = assert_enqueued(session, queue, body="a")
        assert message.body == "a"
        assert len(assert_enqueued(session, queue, count=2, body="b")) == 2
        assert_enqueued(session, queue, count=0, body="c")
        assert len(enqueued(session, queue)) == 3
        message.fail(session)
        assert_enqueued(session, queue, count=0, body="a")
        assert len(enqueued(session, queue)) == 2
        with pytest.raises(AssertionError, match=r"found 0. There are:\n  Message\(body='"):
            assert_enqueued(session, queue, body="c")
        session.rollback()
        with pytest.raises(AssertionError, match="There are: none"):
            assert_enqueued(session, queue, body="a")


def test_drain_handles_what_is_due_in_order_and_what_handlers_enqueue(
    queue: type[Any], sessions: sessionmaker[Session]
) -> None:
    def handle(message: Any, session: Session) -> None:
        if message.body == "urgent":
            session.add(queue(body="follows"))

    with sessions.begin() as session:
        session.add(queue(body="usual"))
        session.add(queue(body="urgent", priority=1))
        session.add(queue(body="later", deliver_in=60))
    assert [m.body for m in drain(queue, sessions, handle)] == ["urgent", "usual", "follows"]
    with sessions() as session:
        assert_enqueued(session, queue, body="later")
        assert queue.stats(session).acked == 3


def test_drain_raises_what_a_handler_raises_and_loses_nothing(
    queue: type[Any], sessions: sessionmaker[Session]
) -> None:
    def broken(_message: Any, session: Session) -> None:
        session.add(queue(body="rolled back"))
        raise LookupError

    with sessions.begin() as session:
        session.add(queue(body="a"))
    with pytest.raises(LookupError):
        drain(queue, sessions, broken)
    assert [message.body for message in drain(queue, sessions, ignore)] == ["a"]


def test_drain_retries_as_a_worker_would_when_time_passes(
    queue: type[Any], sessions: sessionmaker[Session], message_clock: Clock
) -> None:
    epochs: list[int] = []

    def handle(message: Any, _session: Session) -> None:
        if message.body == "discard":
            raise Discard("no")
        epochs.append(message.epoch)
        if message.epoch < 2:
            raise Retry(60)

    with sessions.begin() as session:
        session.add_all([queue(body="retry"), queue(body="discard")])
    policy = RetryPolicy()
    assert drain(queue, sessions, handle, retry=policy) == []
    message_clock.move_by(59)
    assert drain(queue, sessions, handle, retry=policy) == []
    message_clock.move_by(timedelta(seconds=2))
    assert drain(queue, sessions, handle, retry=policy) == []
    message_clock.move_by(61)
    [handled] = drain(queue, sessions, handle, retry=policy)
    assert handled.body == "retry"
    assert epochs == [0, 1, 2]
    with sessions() as session:
        assert [message.body for message in queue.dead(session)] == ["discard"]


def test_drain_notices_that_it_never_ends(
    queue: type[Any], sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breed(_message: Any, session: Session) -> None:
        session.add(queue())

    monkeypatch.setattr(draining, "MOST", 20)
    with sessions.begin() as session:
        session.add(queue())
    with pytest.raises(AssertionError, match="still messages of Message after 20"):
        drain(queue, sessions, breed)


def test_the_clock_goes_to_a_time_and_comes_back(
    queue: type[Any], sessions: sessionmaker[Session]
) -> None:
    at = datetime(2031, 5, 1, 12, tzinfo=UTC)
    with sessions.begin() as session:
        session.add(queue(deliver_at=at))
    with travelling_clock() as clock:
        assert drain(queue, sessions, ignore) == []
        clock.move_to(at + timedelta(seconds=1))
        assert clock.now == at + timedelta(seconds=1)
        assert len(drain(queue, sessions, ignore)) == 1
    with sessions.begin() as session:
        session.add(queue())
        assert enqueued(session, queue)[0].deliver_at < at


def test_drain_works_inside_a_transaction_that_the_test_rolls_back(
    queue: type[Any], sessions: sessionmaker[Session]
) -> None:
    engine: Engine = sessions.kw["bind"]
    with engine.connect() as connection, connection.begin() as transaction:
        inside = sessionmaker(connection, join_transaction_mode="create_savepoint")
        with inside.begin() as session:
            session.add(queue(body="a"))
        assert len(drain(queue, inside, ignore)) == 1
        transaction.rollback()
    with sessions() as session:
        assert session.scalars(select(queue)).all() == []


def test_coroutines_are_drained_too(queue: type[Any], tmp_path: Path) -> None:
    async def handle(message: Any, session: AsyncSession) -> None:
        await asyncio.sleep(0)
        if message.body == "bad":
            raise Retry(delay=60)
        if message.body == "first":
            session.add(queue(body="follows"))

    async def test() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        async with engine.begin() as connection:
            await connection.run_sync(queue.metadata.create_all)
        async with sessions.begin() as session:
            session.add_all([queue(body="first"), queue(body="bad", priority=60)])
            assert len(await session.run_sync(enqueued, queue)) == 2
            await session.run_sync(assert_enqueued, queue, body="first")
        drained = await aio_testing.drain(queue, sessions, handle, retry=RetryPolicy())
        assert [message.body for message in drained] == ["first", "follows"]
        async with sessions() as session:
            [left] = await session.run_sync(assert_enqueued, queue, body="bad")
            assert left.attempts == 1
        await engine.dispose()

    asyncio.run(test())


def test_an_error_of_a_coroutine_leaves_the_message_ready(queue: type[Any], tmp_path: Path) -> None:
    async def handle(_message: Any, _session: AsyncSession) -> None:
        raise ZeroDivisionError

    async def test() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
        sessions = async_sessionmaker(engine)
        async with engine.begin() as connection:
            await connection.run_sync(queue.metadata.create_all)
        async with sessions.begin() as session:
            session.add(queue(body="x"))
        with pytest.raises(ZeroDivisionError):
            await aio_testing.drain(queue, sessions, handle)
        async with sessions() as session:
            stats = await session.run_sync(queue.stats)
        assert stats.ready == 1
        await engine.dispose()

    asyncio.run(test())
