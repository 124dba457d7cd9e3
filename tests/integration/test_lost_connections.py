"""A connection that the database has lost is no fault of a message, and costs it no attempt."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import RetryPolicy, Subscriber, Worker
from tests.backends import BACKENDS, Backend, enqueue, eventually, make_worker
from tests.faults import lost_answers
from tests.proxy import Proxy

MakeQueue = Callable[..., type[Any]]

ONCE = RetryPolicy(max_attempts=1)
"""A single attempt that counts makes a message dead."""

SERVERS = [b for b in BACKENDS if b.name in ("mysql", "mariadb", "vitess", "vitess-asyncio")]

pytestmark = pytest.mark.parametrize(
    "backend", SERVERS, indirect=True, ids=lambda backend: backend.name
)


class Bench:
    """A queue with a table of effects, behind a proxy that can lose connections."""

    def __init__(self, engine: Engine, backend: Backend, make_queue: MakeQueue) -> None:
        base: Any = type("Base", (DeclarativeBase,), {})
        self.queue = make_queue(base=base, attributes={}, ack_wait=20)
        name = self.queue.__tablename__.replace("queue", "effect")

        class Effect(base):  # type: ignore[misc]
            __tablename__ = name
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

        self.Effect = Effect
        base.metadata.create_all(engine)
        self.engine = engine
        self._backend = backend
        self.proxy = Proxy(f"{engine.url.host}:{engine.url.port}")
        port = int(self.proxy.address.rpartition(":")[2])
        self.proxied = create_engine(engine.url.set(port=port))
        self.attempts: list[int] = []
        self._stack = ExitStack()

    def enqueue(self) -> None:
        enqueue(self.engine, self.queue())

    def apply(self, message: Any, session: Session) -> None:
        self.attempts.append(message.attempts)
        session.execute(text("SELECT 1"))
        session.add(self.Effect(id=message.id))

    def work(self, handler: Callable[..., Any], **options: Any) -> None:
        """Start a worker, behind the proxy, which gives each message one attempt."""
        options = {"retry": ONCE, "concurrency": 1} | options
        worker = make_worker(self._backend, self.queue, self.proxied, handler, **options)
        worker.start()
        self._stack.callback(worker.stop)

    def work_with(self, subscriber: Any, engine: Engine, handler: Callable[..., Any]) -> None:
        """Start a worker whose handlers use this engine."""
        sessions = sessionmaker(engine)
        worker = Worker(subscriber, handler, sessions, concurrency=1, retry=ONCE)
        self._stack.enter_context(worker)

    def settled(self, acked: int, dead: int = 0) -> None:
        """Wait until so many messages are acked, and others dead."""

        def states() -> Counter[str]:
            with self.engine.connect() as connection:
                stats = self.queue.stats(connection)
                return Counter(acked=stats.acked, dead=stats.dead)

        eventually(lambda: states().total() == acked + dead, within=25)
        assert states() == Counter(acked=acked, dead=dead)

    def effects(self) -> int:
        with self.engine.connect() as connection:
            return len(connection.scalars(select(self.Effect.id)).all())

    def close(self) -> None:
        self.proxy.resume()
        self._stack.close()
        self.proxied.dispose()
        self.proxy.__exit__(None, None, None)


@pytest.fixture
def bench(engine: Engine, backend: Backend, make_queue: MakeQueue, work: Any) -> Iterator[Bench]:
    bench = Bench(engine, backend, make_queue)
    yield bench
    bench.close()


def test_a_connection_that_was_closed_while_idle_costs_no_attempt(bench: Bench) -> None:
    bench.work(bench.apply)
    for number in (1, 2, 3):
        bench.enqueue()
        bench.settled(number)
        bench.proxy.drop()
    assert bench.attempts[-1] == 0
    assert bench.effects() == 3


def test_a_connection_lost_in_a_handler_costs_no_attempt(bench: Bench) -> None:
    def lose(message: Any, session: Session) -> None:
        bench.apply(message, session)
        session.flush()
        if len(bench.attempts) == 1:
            bench.proxy.drop()
            session.execute(text("SELECT 1"))

    bench.work(lose)
    bench.enqueue()
    bench.settled(1)
    assert bench.attempts == [0, 0]
    assert bench.effects() == 1


def test_an_error_raised_because_of_a_lost_connection_costs_no_attempt(bench: Bench) -> None:
    def lose(message: Any, session: Session) -> None:
        bench.apply(message, session)
        try:
            if len(bench.attempts) == 1:
                bench.proxy.drop()
            session.flush()
        except Exception as error:
            raise ValueError("no effect") from error

    bench.work(lose)
    bench.enqueue()
    bench.settled(1)
    assert bench.attempts == [0, 0]


def test_a_batch_outlives_a_lost_connection(bench: Bench) -> None:
    def lose(messages: Any, session: Session) -> None:
        for message in messages:
            bench.apply(message, session)
        if not lost.is_set():
            lost.set()
            bench.proxy.drop()

    lost = threading.Event()
    for _ in range(5):
        bench.enqueue()
    bench.work(lose, batch_size=5)
    bench.settled(5)
    assert set(bench.attempts) == {0}
    assert bench.effects() == 5


def test_a_verdict_outlives_a_lost_connection(bench: Bench) -> None:
    def lose(message: Any, session: Session) -> None:
        session.execute(text("SELECT 1"))
        if not lost.is_set():
            lost.set()
            bench.proxy.drop()
        raise ValueError("a fault of the message")

    lost = threading.Event()
    bench.work(lose)
    bench.enqueue()
    bench.settled(0, dead=1)


def test_while_the_database_is_away_messages_are_released_and_not_counted(
    bench: Bench, make_queue: MakeQueue, backend: Backend
) -> None:
    """Longer than the handlers are repeated, for ``ack_wait``."""
    if backend.driver is not None:
        return  # An AsyncWorker has the same code for this, and its adapter one database.
    bench.queue = make_queue(ack_wait=0.5, min_backoff=20)
    handled = threading.Event()

    def lose(message: Any, session: Session) -> None:
        bench.attempts.append(message.attempts)
        if len(bench.attempts) == 1:
            bench.proxy.refuse()
            threading.Timer(2, bench.proxy.resume).start()
        session.execute(text("SELECT 1"))
        handled.set()

    bench.work_with(Subscriber(bench.queue, bench.engine), bench.proxied, lose)
    bench.enqueue()
    assert handled.wait(20)
    bench.settled(1)
    assert set(bench.attempts) == {0}


def test_a_handler_that_loses_its_connection_each_time_fails_in_the_end(
    bench: Bench, make_queue: MakeQueue, backend: Backend
) -> None:
    """Otherwise a message that ends its connection would be handled for ever."""
    if backend.driver is not None:
        return
    bench.queue = make_queue(ack_wait=0.5, min_backoff=20)

    def lose(_message: Any, session: Session) -> None:
        session.execute(text("SELECT 1"))
        bench.proxy.drop()
        session.execute(text("SELECT 1"))

    bench.work_with(Subscriber(bench.queue, bench.engine), bench.proxied, lose)
    bench.enqueue()
    bench.settled(0, dead=1)


def test_a_lost_connection_to_another_database_is_a_failed_attempt(
    bench: Bench, backend: Backend
) -> None:
    if backend.driver is not None:
        return
    other = create_engine(bench.proxied.url)

    def lose(_message: Any, session: Session) -> None:
        session.execute(text("SELECT 1"))
        with other.connect() as connection:
            connection.execute(text("SELECT 1"))
            bench.proxy.drop()
            connection.execute(text("SELECT 1"))

    bench.work_with(Subscriber(bench.queue, bench.engine), bench.engine, lose)
    bench.enqueue()
    bench.settled(0, dead=1)
    other.dispose()


@pytest.mark.parametrize("committed", [True, False])
def test_an_ack_whose_answer_was_lost_has_its_effect_once(
    bench: Bench, backend: Backend, committed: bool
) -> None:
    if backend.driver is not None:
        return
    with lost_answers(bench.proxied, committed=committed) as lost:
        bench.work_with(Subscriber(bench.queue, bench.engine), bench.proxied, bench.apply)
        bench.enqueue()
        bench.settled(1)
        eventually(lambda: bench.effects() == 1)
    assert len(lost) == 1
    # The handler doesn't run again for a message that turns out to be acked.
    assert bench.attempts == ([0] if committed else [0, 0])
