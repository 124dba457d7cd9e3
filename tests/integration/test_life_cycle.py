"""Opening and closing, in every order and from everywhere: nothing of a subscriber stays behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy import Connection, Engine, Table, create_engine, make_url
from sqlalchemy.event import registry
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import Pool

from sqla_vitess_messages import (
    InvalidArgument,
    QueueNotFound,
    Subscriber,
    SubscriberClosed,
    Worker,
)
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker
from sqla_vitess_messages.events import Delivered, Event, LeaseExpired, Settled
from sqla_vitess_messages.transports import engines
from tests.backends import (
    BACKENDS,
    Backend,
    ack,
    async_url,
    enqueue,
    eventually,
)
from tests.proxy import Proxy

Subscribe = Callable[..., Any]

OURS = ("Subscriber(", "SettlementBatcher", "Heartbeat", "Worker-", "MysqlStream", "GrpcStream")
"""How the names of the library's threads begin."""


def backends(*names: str) -> pytest.MarkDecorator:
    chosen = [backend for backend in BACKENDS if backend.name in names]
    return pytest.mark.parametrize("backend", chosen, indirect=True, ids=lambda one: one.name)


def our_threads() -> list[str]:
    """Return the names of the threads that the library has started, and that run."""
    return [one.name for one in threading.enumerate() if one.name.startswith(OURS)]


def left_behind() -> dict[str, int]:
    """Count what a subscriber has while it is open."""
    gc.collect()
    types = Counter(map(type, gc.get_objects()))
    kinds = (Engine, Table, Connection, Pool, type)
    counts = {
        kind.__name__: sum(count for one, count in types.items() if issubclass(one, kind))
        for kind in kinds
    }
    files = Path("/proc/self/fd")
    return counts | {
        "listeners": len(registry._key_to_collection),
        "threads": threading.active_count(),
        "files": len(list(files.iterdir())) if files.exists() else 0,
    }


REPETITIONS = 15

ALLOWED = 8
"""How many more there may be of anything: not one of each repetition. Some are collected late."""


@pytest.mark.parametrize("bind", ["url", "engine"])
@pytest.mark.parametrize("kind", ["subscriber", "worker"])
@backends("sqlite", "mysql")
def test_opening_and_closing_leaves_nothing_behind(
    engine: Engine, url: str, queue: type[Any], kind: str, bind: str
) -> None:
    bound: Any = url if bind == "url" else engine
    sessions = sessionmaker(engine)

    def once() -> None:
        subscriber = Subscriber(queue, bound)
        with subscriber if kind == "subscriber" else Worker(subscriber, print, sessions):
            pass

    with Session(engine) as session, session.begin():
        message = queue()
        session.add(message)
        session.flush()
        message.ack(session)  # From then on the application's own engine has listeners.
    for _ in range(2):
        once()
    before = left_behind()
    for _ in range(REPETITIONS):
        once()
    eventually(lambda: our_threads() == [])
    grown = {name: count - before[name] for name, count in left_behind().items()}
    assert not {name: more for name, more in grown.items() if more > ALLOWED}


async def handle(_message: object, _session: object) -> None:
    pass


@pytest.mark.usefixtures("subscribe")
@pytest.mark.parametrize("bind", ["url", "engine"])
@pytest.mark.parametrize("kind", ["subscriber", "worker"])
@backends("sqlite-asyncio", "vitess-asyncio")
def test_opening_and_closing_in_an_event_loop_leaves_nothing_behind(
    url: str, queue: type[Any], backend: Backend, kind: str, bind: str
) -> None:
    assert backend.driver is not None
    bound: Any = async_url(url, backend.driver)

    async def repeat() -> dict[str, int]:
        engine = create_async_engine(bound)
        sessions = async_sessionmaker(engine)

        async def once() -> None:
            subscriber = AsyncSubscriber(queue, bound if bind == "url" else engine)
            async with (
                subscriber if kind == "subscriber" else AsyncWorker(subscriber, handle, sessions)
            ):
                pass

        for _ in range(2):
            await once()
        before = left_behind()
        tasks = len(asyncio.all_tasks())
        for _ in range(REPETITIONS):
            await once()
        await asyncio.sleep(0.1)  # The last connections are being closed.
        assert len(asyncio.all_tasks()) == tasks
        after = left_behind()
        await engine.dispose()
        return {name: count - before[name] for name, count in after.items()}

    grown = asyncio.run(repeat())
    assert not {name: more for name, more in grown.items() if more > ALLOWED}


@backends("mysql", "vitess", "vitess-stream")
def test_a_loop_that_is_stuck_at_close_leaves_its_successor_alone(
    engine: Engine,
    url: str,
    queue: type[Any],
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "READ_TIMEOUT", 4.0)
    bound = make_url(url)
    events: list[Event] = []
    with Proxy(f"{bound.host}:{bound.port}") as proxy:
        ports = [int(proxy.address.rpartition(":")[2])]

        def connect() -> Any:
            return pymysql.connect(
                host="127.0.0.1",
                port=ports[-1],
                user=bound.username,
                database=bound.database,
                read_timeout=4,
            )

        behind_proxy = create_engine(url, creator=connect)
        subscriber = Subscriber(
            queue, behind_proxy, max_concurrency=4, on_event=events.append, **backend.options
        )
        subscriber.open()
        enqueue(engine, queue())
        old = subscriber.get(20)
        assert old is not None
        if backend.transport == "stream":
            eventually(lambda: "MysqlStream" in our_threads())
        proxy.stall()
        time.sleep(0.3)  # Longer than a pause between two polls: one waits for its answer.
        ports.append(bound.port or 0)
        subscriber.close()
        stuck = our_threads()
        assert stuck
        events.clear()
        subscriber.open()
        added = [queue(), queue()]
        ids = {message.id for message in added}
        enqueue(engine, *added)
        new: list[Any] = []
        while not ids <= {message.id for message in new}:
            new.append(subscriber.get(20))
        eventually(lambda: len(our_threads()) < len(stuck) + 2, within=30)
        assert {type(event) for event in events} <= {Delivered, Settled, LeaseExpired}
        if backend.transport != "stream":  # That may bring a message twice.
            ack(engine, old, *new)
            assert subscriber.get(0.5) is None
            assert len(new) == 2
            eventually(lambda: subscriber._in_flight.free == 4)
            assert [type(event) for event in events].count(Delivered) == 2
        subscriber.close()
        eventually(lambda: our_threads() == [], within=30)


@backends("vitess-asyncio")
@pytest.mark.usefixtures("subscribe")
def test_tasks_that_are_stuck_at_close_leave_their_successors_alone(
    engine: Engine, url: str, queue: type[Any], backend: Backend
) -> None:
    assert backend.driver is not None
    bound = async_url(url, backend.driver)
    events: list[Event] = []

    async def use(proxy: Proxy) -> None:
        port = int(proxy.address.rpartition(":")[2])
        subscriber = AsyncSubscriber(
            queue, bound.set(host="127.0.0.1", port=port), max_concurrency=4, on_event=events.append
        )
        await subscriber.open()
        proxy.stall()
        await asyncio.sleep(0.3)  # Longer than a pause between two polls.
        await subscriber.close()
        subscriber._bind = bound
        events.clear()
        await subscriber.open()
        enqueue(engine, queue(), queue())
        for _ in range(2):
            message: Any = await subscriber.get(20)
            ack(engine, message)
        assert {type(event) for event in events} <= {Delivered, Settled}
        await subscriber.close()
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.02)

    with Proxy(f"{bound.host}:{bound.port}") as proxy:
        asyncio.run(use(proxy))


@backends("sqlite-asyncio", "vitess-asyncio", "vitess-grpc-asyncio")
@pytest.mark.usefixtures("subscribe")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_end_of_an_event_loop_breaks_no_commit(
    engine: Engine, url: str, queue: type[Any], backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    assert backend.driver is not None
    subscriber = AsyncSubscriber(queue, async_url(url, backend.driver), **backend.options)
    enqueue(engine, queue(), queue(), queue())

    async def receive() -> list[Any]:
        await subscriber.open()
        return [await subscriber.get(20) for _ in range(3)]

    messages = asyncio.run(receive())
    acked, failed, retried = messages
    with Session(engine) as session, session.begin():
        acked.ack(session)
        failed.fail(session)
        retried.retry(session, 60)
        session.add(queue())  # The commit notifies the subscribers of this process.
    with Session(engine) as session:
        stats = queue.stats(session)
    assert (stats.acked, stats.dead) == (1, 1)
    assert "ignored, so that the transaction can end" not in caplog.text
    assert not subscriber.is_open
    asyncio.run(subscriber.close())


def drop_after_get(subscriber: Subscriber[Any]) -> None:
    assert subscriber.get(20) is not None


def drop_amid_iteration(subscriber: Subscriber[Any]) -> None:
    for _message in subscriber:
        break


@backends("sqlite", "mysql", "vitess", "vitess-stream", "vitess-grpc")
@pytest.mark.parametrize("use", [drop_after_get, drop_amid_iteration])
def test_a_subscriber_that_is_dropped_ends(
    engine: Engine, url: str, queue: type[Any], backend: Backend, use: Callable[..., None]
) -> None:
    enqueue(engine, *(queue() for _ in range(3)))
    subscriber = Subscriber(queue, url, **backend.options)
    subscriber.open()
    use(subscriber)
    dropped = [subscriber]
    del subscriber
    with pytest.warns(ResourceWarning, match="was not closed"):
        dropped.clear()
    eventually(lambda: our_threads() == [], within=20)

    def counts() -> tuple[int, int]:
        with Session(engine) as session:
            stats = queue.stats(session)
        return stats.ready, stats.leased

    eventually(lambda: counts() == (2, 1))


@backends("sqlite-asyncio", "vitess-asyncio", "vitess-grpc-asyncio")
@pytest.mark.usefixtures("subscribe")
@pytest.mark.parametrize("iterate", [False, True])
def test_an_async_subscriber_that_is_dropped_ends(
    engine: Engine, url: str, queue: type[Any], backend: Backend, iterate: bool
) -> None:
    enqueue(engine, *(queue() for _ in range(3)))
    assert backend.driver is not None
    bound = async_url(url, backend.driver)

    async def use() -> None:
        subscriber = AsyncSubscriber(queue, bound, **backend.options)
        await subscriber.open()
        if iterate:
            async for _message in subscriber:
                break
        else:
            assert await subscriber.get(20) is not None

    async def drop() -> None:
        await use()
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > 1:
                gc.collect()
                await asyncio.sleep(0.02)

    with pytest.warns(ResourceWarning, match="was not closed"):
        asyncio.run(drop())
    with Session(engine) as session:
        stats = queue.stats(session)
    # A stream ends when its server may not have postponed the message yet that it has sent.
    assert stats.ready + stats.leased == 3
    assert stats.ready >= 2


def test_opening_and_closing_may_be_repeated(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(queue)
    subscriber.open()
    enqueue(engine, queue())
    ack(engine, subscriber.get(20))
    subscriber.close()
    subscriber.close()
    with pytest.raises(SubscriberClosed):
        subscriber.get(0)
    subscriber.open()
    enqueue(engine, queue())
    ack(engine, subscriber.get(20))


@backends("sqlite", "mysql")
def test_a_subscriber_opens_after_an_attempt_that_failed(
    engine: Engine, url: str, queue: type[Any]
) -> None:
    subscriber = Subscriber(queue, url)
    subscriber.close()
    table = queue.__table__
    table.drop(engine)
    for _ in range(2):
        with pytest.raises(QueueNotFound):
            subscriber.open()
        assert not subscriber.is_open
    assert our_threads() == []
    table.create(engine)
    with subscriber:
        enqueue(engine, queue())
        assert subscriber.get(20) is not None


@backends("sqlite", "mysql", "vitess-stream", "vitess-grpc")
def test_close_may_be_called_from_anywhere(
    engine: Engine, url: str, queue: type[Any], backend: Backend
) -> None:
    def close(_event: object = None) -> None:
        subscriber.close()

    subscriber = Subscriber(queue, url, on_event=close, **backend.options)
    subscriber.open()
    enqueue(engine, queue())
    with suppress(SubscriberClosed):  # In on_event, as the message is being handed out.
        subscriber.get(20)
    eventually(lambda: our_threads() == [])
    assert not subscriber.is_open

    subscriber = Subscriber(queue, url, **backend.options)
    with subscriber:  # In another thread, while this one waits.
        while subscriber.get(0.2) is not None:
            pass
        threading.Timer(0.2, close).start()
        with pytest.raises(SubscriberClosed):
            subscriber.get(20)
    eventually(lambda: our_threads() == [])


@backends("sqlite", "mysql")
def test_a_handler_may_close_the_subscriber_and_stop_the_worker(
    engine: Engine, url: str, queue: type[Any]
) -> None:
    closed = threading.Event()

    def close(_message: object, _session: object) -> None:
        worker._subscriber.close()  # type: ignore[attr-defined]
        worker.request_stop()
        closed.set()

    worker: Worker[Any] = Worker(Subscriber(queue, url), close, sessionmaker(engine))
    enqueue(engine, queue())
    worker.start()
    worker.start()
    assert closed.wait(20)
    assert worker.stop()
    assert worker.stop()
    assert our_threads() == []
    with Session(engine) as session:
        assert queue.stats(session).acked == 1
    with pytest.raises(ZeroDivisionError), worker:
        raise ZeroDivisionError
    assert our_threads() == []


@backends("sqlite")
def test_an_error_at_the_start_of_a_worker_is_the_one_that_is_raised(
    url: str, queue: type[Any]
) -> None:
    autocommit = create_engine(url, isolation_level="AUTOCOMMIT")
    worker: Worker[Any] = Worker(Subscriber(queue, url), print, sessionmaker(autocommit))
    with pytest.raises(InvalidArgument, match="autocommit mode"):
        worker.run()
    autocommit.dispose()
