"""Handlers that a worker runs: their effect and the ack are one transaction."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, String, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import (
    Discard,
    InvalidArgument,
    InvalidArgumentType,
    QueueNotFound,
    QueueOptions,
    Retry,
    RetryPolicy,
    Subscriber,
    Worker,
    random_id,
)
from tests.backends import BACKENDS, STREAMS, Backend, enqueue, eventually, make_queue_class
from tests.deadlock_partner import FIRST, SECOND, DeadlockPartner

pytestmark = pytest.mark.parametrize(
    "backend",
    [b for b in BACKENDS if b.name in ("sqlite", "mysql", "vitess", "vitess-grpc")],
    indirect=True,
    ids=lambda backend: backend.name,
)
QUICK = RetryPolicy(max_attempts=3, min_delay=0.01, max_delay=0.02)


class Bench:
    """A queue, a table of effects, and workers, which are stopped at the end of the test."""

    def __init__(
        self, engine: Engine, url: str, backend: Backend, make_queue: Callable[..., type[Any]]
    ) -> None:
        class Base(DeclarativeBase):
            pass

        fail_reason = mapped_column(String(60))
        self.queue = make_queue(Base, {"fail_reason": fail_reason}, ack_wait=4)

        class Effect(Base):
            __tablename__ = f"effect_of_{self.queue.__tablename__}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
            body: Mapped[str] = mapped_column(String(100))

        self.Effect = Effect
        Base.metadata.create_all(engine)
        self.engine, self.url, self.backend = engine, url, backend
        self.sessions = sessionmaker(engine)
        self._workers: list[Worker[Any]] = []

    def apply(self, message: Any, session: Session) -> None:
        session.add(self.Effect(body=message.body))

    def worker(self, handler: Callable[..., Any], **options: Any) -> Worker[Any]:
        subscriber = Subscriber(self.queue, self.url, **self.backend.options)
        worker = Worker(subscriber, handler, self.sessions, **{"retry": QUICK} | options)
        self._workers.append(worker)
        worker.start()
        return worker

    def enqueue(self, *bodies: str) -> None:
        enqueue(self.engine, *(self.queue(body=body) for body in bodies))

    def effects(self) -> Counter[str]:
        with self.sessions() as session:
            return Counter(session.scalars(select(self.Effect.body)))

    def stats(self) -> Any:
        with self.sessions() as session:
            return self.queue.stats(session)

    def settled(self, acked: int, dead: int = 0) -> None:
        eventually(lambda: (self.stats().acked, self.stats().dead) == (acked, dead), within=30)

    def reasons(self) -> list[str]:
        with self.sessions() as session:
            return [message.fail_reason for message in self.queue.dead(session)]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


@pytest.fixture
def bench(
    engine: Engine, url: str, backend: Backend, make_queue: Callable[..., type[Any]]
) -> Iterator[Bench]:
    bench = Bench(engine, url, backend, make_queue)
    yield bench
    bench.close()


def test_the_effect_and_the_ack_commit_together(bench: Bench) -> None:
    bodies = [str(number) for number in range(50)]
    bench.enqueue(*bodies)
    bench.worker(bench.apply)
    bench.settled(50)
    assert bench.effects() == Counter(bodies)


def test_a_handler_that_fails_is_rolled_back_and_tried_again(bench: Bench) -> None:
    epochs: list[int] = []

    def fail_twice(message: Any, session: Session) -> None:
        bench.apply(message, session)
        session.flush()
        epochs.append(message.epoch)
        if message.epoch < 2:
            raise ConnectionError("not yet")

    bench.enqueue("once")
    bench.worker(fail_twice)
    bench.settled(1)
    assert bench.effects() == Counter(["once"])
    assert epochs == [0, 1, 2]


def test_a_rule_allows_more_attempts_than_its_policy(bench: Bench) -> None:
    attempts: list[int] = []

    def fail(message: Any, _session: Session) -> None:
        attempts.append(message.attempts)
        raise ConnectionError("not yet")

    bench.enqueue("never")
    rule = RetryPolicy(max_attempts=4, min_delay=0.01, max_delay=0.02)
    bench.worker(fail, retry=RetryPolicy(max_attempts=2, rules={ConnectionError: rule}))
    bench.settled(0, dead=1)
    assert attempts == [0, 1, 2, 3]
    assert bench.reasons() == ["ConnectionError: not yet (attempt 4 of 4)"]


def test_a_message_dies_with_its_reason_when_its_attempts_are_used_up(bench: Bench) -> None:
    def fail(message: Any, _session: Session) -> None:
        raise ConnectionError(f"{message.body} " + "x" * 100)

    bench.enqueue("never")
    bench.worker(fail)
    bench.settled(0, dead=1)
    [reason] = bench.reasons()
    assert reason.startswith("ConnectionError: never xxx")
    assert len(reason) == 60  # As long as the column.


def test_a_deadlock_is_no_failed_attempt(bench: Bench) -> None:
    if bench.backend.server is None:
        return  # SQLite allows one writer at a time.
    epochs: list[int] = []
    with DeadlockPartner(bench.engine, bench.Effect) as partner:

        def lock_both(message: Any, session: Session) -> None:
            epochs.append(message.epoch)
            session.execute(partner.lock(FIRST))
            partner.request_first()
            session.execute(partner.lock(SECOND))

        bench.enqueue("again")
        bench.worker(lock_both, concurrency=1, retry=RetryPolicy(max_attempts=1))
        bench.settled(1)
    assert epochs == [0, 0]


def test_rules_discard_and_retry_decide(bench: Bench) -> None:
    seen: list[tuple[str, int, float]] = []

    def handle(message: Any, session: Session) -> None:
        bench.apply(message, session)
        seen.append((message.body, message.epoch, time.monotonic()))
        if message.body == "discard":
            raise Discard("no such user")
        if message.body == "rule":
            raise UnicodeError("a ValueError, so dead at once")
        if message.body == "exit":
            raise SystemExit(3)  # It must not end the thread.
        if message.body == "retry" and message.epoch == 0:
            raise Retry(delay=0.5)

    policy = RetryPolicy(max_attempts=2, min_delay=0.01, rules={ValueError: None})
    bench.worker(handle, retry=policy, concurrency=1)
    bench.enqueue("discard", "rule", "exit", "retry", "fine")
    bench.settled(2, dead=3)
    assert bench.effects() == Counter(["retry", "fine"])
    assert sorted(bench.reasons()) == [
        "SystemExit: 3 (attempt 2 of 2)",
        "UnicodeError: a ValueError, so dead at once",
        "no such user",
    ]
    first, second = (at for body, _epoch, at in seen if body == "retry")
    assert second - first > 0.45


def test_a_message_that_nobody_lived_to_settle_dies_unhandled(bench: Bench) -> None:
    bench.enqueue("poison")
    with bench.sessions.begin() as session:
        session.execute(update(bench.queue).values(epoch=3))
    bench.worker(bench.apply)
    bench.settled(0, dead=1)
    assert bench.reasons() == ["handed out 3 times and never settled"]
    assert bench.effects() == Counter()


def test_a_long_handler_keeps_its_lease(bench: Bench) -> None:
    handled: list[int] = []

    def handle_slowly(message: Any, session: Session) -> None:
        handled.append(message.epoch)
        time.sleep(7)  # A lease lasts 4 s, and its backoff adds 0.4 at most.
        bench.apply(message, session)

    bench.enqueue("long")
    bench.worker(handle_slowly)
    bench.worker(handle_slowly)
    bench.settled(1)
    assert handled == [0]


def test_a_lost_lease_keeps_the_transaction_from_committing(bench: Bench) -> None:
    started, lost = threading.Event(), threading.Event()

    def work(message: Any, session: Session) -> None:
        bench.apply(message, session)
        started.set()
        lost.wait(20)

    bench.enqueue("stolen")
    worker = bench.worker(work, concurrency=1)
    assert started.wait(20)
    with bench.sessions.begin() as session:
        # As the next delivery does.
        session.execute(update(bench.queue).values(epoch=bench.queue.epoch + 1))
    renewals = worker._renewals
    eventually(lambda: renewals._lost)
    lost.set()
    eventually(lambda: not renewals._watched)
    assert bench.effects() == Counter()
    assert bench.stats().acked == 0


def test_a_handler_that_hangs_does_not_stop_the_others(bench: Bench) -> None:
    hangs, release = threading.Event(), threading.Event()

    def hang(message: Any, session: Session) -> None:
        if message.body == "hangs":
            hangs.set()
            release.wait(60)
        bench.apply(message, session)

    before = threading.active_count()
    bench.enqueue("hangs", *(str(number) for number in range(30)))
    worker = bench.worker(hang, concurrency=2, shutdown_timeout=0.1)
    try:
        bench.settled(30)
        assert hangs.wait(20)
        # Two threads for handlers, and the subscriber's own.
        assert threading.active_count() - before <= 2 + 6
        started = time.monotonic()
        assert worker.stop() is False
        assert time.monotonic() - started < 5
    finally:
        release.set()


def test_stopping_finishes_what_runs_and_gives_back_the_rest(bench: Bench) -> None:
    started = threading.Event()

    def work(message: Any, session: Session) -> None:
        started.set()
        time.sleep(0.3)
        bench.apply(message, session)

    bench.enqueue(*(str(number) for number in range(50)))
    worker = bench.worker(work, concurrency=3)
    assert started.wait(20)
    assert worker.stop() is True
    stats = bench.stats()
    assert 0 < stats.acked <= 6
    assert sum(bench.effects().values()) == stats.acked
    # A stream may have more messages in transit than the subscriber has free slots.
    assert stats.ready == 50 - stats.acked or bench.backend.transport in STREAMS


def test_a_batch_is_one_transaction(bench: Bench) -> None:
    sizes: list[int] = []

    def handle(messages: Any, session: Session) -> None:
        sizes.append(len(messages))
        session.add_all([bench.Effect(body=message.body) for message in messages])

    bodies = [str(number) for number in range(100)]
    bench.enqueue(*bodies)
    bench.worker(handle, batch_size=20, concurrency=1)
    bench.settled(100)
    assert bench.effects() == Counter(bodies)
    assert max(sizes) == 20


def test_one_poisonous_message_does_not_hold_up_its_batch(bench: Bench) -> None:
    def handle(messages: Any, session: Session) -> None:
        for message in messages:
            session.add(bench.Effect(body=message.body))
            if message.body == "13":
                raise ValueError("unlucky")

    bodies = [str(number) for number in range(40)]
    bench.enqueue(*bodies)
    bench.worker(handle, batch_size=20, concurrency=1)
    bench.settled(39, dead=1)
    assert bench.effects() == Counter(body for body in bodies if body != "13")


def test_a_batch_in_which_somebody_else_acked_one_goes_on_without_it(bench: Bench) -> None:
    def handle(messages: Any, session: Session) -> None:
        for message in messages:
            session.add(bench.Effect(body=message.body))
            if message.body == "7" and not acked:
                acked.append(message)
                with bench.sessions.begin() as other:
                    same = select(bench.queue).where(bench.queue.id == message.id)
                    other.scalars(same).one().ack(other)

    acked: list[Any] = []
    bodies = [str(number) for number in range(10)]
    bench.enqueue(*bodies)
    bench.worker(handle, batch_size=10, concurrency=1)
    bench.settled(10)
    eventually(lambda: sum(bench.effects().values()) == 9)
    assert bench.effects() == Counter(body for body in bodies if body != "7")


def test_an_error_of_the_subscriber_ends_run(bench: Bench, url: str) -> None:
    missing = make_queue_class(QueueOptions())
    worker = Worker(Subscriber(missing, url), bench.apply, bench.sessions)
    with pytest.raises(QueueNotFound):
        worker.run()


def stop_by_a_fault(subscriber: Any) -> None:
    """Make a subscriber fail with an error that no new connection can mend."""

    def poll(_limit: int) -> None:
        raise LookupError("a fault")

    subscriber._loop._transport.poll = poll
    with pytest.raises(LookupError):
        subscriber.get(20)


def test_leaving_a_worker_raises_the_error_that_stopped_it(bench: Bench) -> None:
    subscriber = Subscriber(bench.queue, bench.url, **bench.backend.options)
    with (
        pytest.raises(LookupError, match="a fault"),
        Worker(subscriber, bench.apply, bench.sessions),
    ):
        stop_by_a_fault(subscriber)
    assert not subscriber.is_open


def test_an_error_raised_in_the_block_of_a_worker_takes_precedence(bench: Bench) -> None:
    subscriber = Subscriber(bench.queue, bench.url, **bench.backend.options)

    def work() -> None:
        with Worker(subscriber, bench.apply, bench.sessions):
            stop_by_a_fault(subscriber)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not subscriber.is_open


def test_what_makes_no_session_is_refused(bench: Bench) -> None:
    subscriber = Subscriber(bench.queue, bench.url, **bench.backend.options)
    for factory, made in (
        (async_sessionmaker(), "AsyncSession"),
        (bench.sessions.begin, "Session object"),
        (bench.engine.begin, "Connection"),
        (object, "object"),
    ):
        worker = Worker(subscriber, bench.apply, factory)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentType, match=f"session_factory=.* it made .*{made}"):
            worker.start()


def test_a_subscriber_of_another_worker_is_refused(bench: Bench) -> None:
    subscriber = Subscriber(bench.queue, bench.url, **bench.backend.options)
    second = Worker(subscriber, bench.apply, bench.sessions)
    with Worker(subscriber, bench.apply, bench.sessions):
        with pytest.raises(InvalidArgument, match=r"subscriber=.*another worker has it"):
            second.start()
        bench.enqueue("one")
        bench.settled(1)
    with subscriber, second:
        bench.enqueue("two")
        bench.settled(2)


def test_run_ends_when_asked_to(bench: Bench) -> None:
    bench.enqueue("one")
    subscriber = Subscriber(bench.queue, bench.url, **bench.backend.options)
    worker = Worker(subscriber, bench.apply, bench.sessions)
    answers: list[bool] = []
    running = threading.Thread(target=lambda: answers.append(worker.run()))
    running.start()
    bench.settled(1)
    worker.request_stop()
    running.join(10)
    assert answers == [True]


def test_wrong_arguments_are_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    subscriber = Subscriber(bench.queue, bench.url)

    def make(**wrong: Any) -> None:
        arguments = {
            "subscriber": subscriber,
            "handler": bench.apply,
            "session_factory": bench.sessions,
        }
        Worker(**arguments | wrong)  # type: ignore[arg-type]

    for name, wrong, kind in (
        ("subscriber", "no", InvalidArgumentType),
        ("handler", None, InvalidArgumentType),
        ("session_factory", bench.engine, InvalidArgumentType),
        ("concurrency", 0, InvalidArgument),
        ("concurrency", "8", InvalidArgumentType),
        ("batch_size", 501, InvalidArgument),
        ("retry", 3, InvalidArgumentType),
        ("shutdown_timeout", -1, InvalidArgument),
    ):
        with pytest.raises(kind, match=f"{name}="):
            make(**{name: wrong})
