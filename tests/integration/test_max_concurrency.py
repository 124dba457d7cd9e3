"""A subscriber never leases more than max_concurrency messages, as the database counts them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sqla_vitess_messages import AlreadySettled, clock
from sqla_vitess_messages.rows.states import DEAD
from tests.async_adapter import sleep
from tests.backends import BACKENDS, PULLING, STREAMS, ack, enqueue, eventually

Subscribe = Callable[..., Any]
Work = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]

streaming = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.transport in STREAMS],
    indirect=True,
    ids=lambda b: b.name,
)
pulling = pytest.mark.parametrize("backend", PULLING, indirect=True, ids=lambda b: b.name)


def leased(engine: Engine, model: type[Any]) -> int:
    """Return the number of unexpired leases in the database."""
    columns = model.__table__.c
    query = select(func.count()).where(
        columns.time_acked.is_(None),
        columns.epoch > 0,
        columns.time_next.between(clock.database_now(), DEAD - 1),
    )
    with engine.connect() as connection:
        return connection.scalar(query) or 0


class LeaseCounter:
    """Records the largest number of leases that there were within the context."""

    def __init__(self, engine: Engine, model: type[Any]) -> None:
        self.most = 0
        self._count = lambda: leased(engine, model)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, self._count())

    def __enter__(self) -> LeaseCounter:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


@pulling
def test_two_subscribers_never_lease_more_than_both_may(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """With a slow handler, a backlog, and settlements that are rolled back once."""
    queue, count = make_queue(ack_wait=60), 400
    enqueue(engine, *(queue(body=str(number)) for number in range(count)))
    done: list[list[int]] = [[], []]

    def handle(subscriber: Any, handled: list[int]) -> None:
        while sum(map(len, done)) < count:
            message = subscriber.get(0.2)
            if message is None:
                continue
            time.sleep(0.01)
            with Session(engine) as session:
                message.ack(session)
                session.rollback()
            with Session(engine) as session, session.begin():
                message.ack(session)
            handled.append(message.epoch)

    with LeaseCounter(engine, queue) as counter:
        subscribers = [subscribe(queue, max_concurrency=8) for _ in done]
        threads = [
            threading.Thread(target=handle, args=(subscriber, handled))
            for subscriber, handled in zip(subscribers, done, strict=True)
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 8 < counter.most <= 16
    assert sum(done[0] + done[1]) == 0  # No message was redelivered.
    assert min(map(len, done)) > count / 5


@pulling
def test_an_expired_lease_frees_its_place_only_when_the_database_thinks_so_too(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=0.3, min_backoff=0.3)
    enqueue(engine, *(queue() for _ in range(40)))
    with LeaseCounter(engine, queue) as counter:
        subscriber = subscribe(queue, max_concurrency=4)
        received = [subscriber.get(20) for _ in range(12)]
    assert all(received)
    assert 0 < counter.most <= 4


@pulling
def test_a_place_is_free_when_the_commit_is_over(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=60)
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue, max_concurrency=1)
    first = subscriber.get(20)
    with Session(engine) as session, session.begin():
        first.ack(session)
        if engine.dialect.name != "sqlite":  # There the open transaction blocks every other one.
            assert subscriber.get(0.5) is None
    assert subscriber.get(20).id != first.id


@pulling
def test_what_waited_too_long_goes_back_without_counting_as_an_attempt(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=0.5, min_backoff=60)
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue, max_concurrency=2)
    eventually(lambda: leased(engine, queue) == 2)
    time.sleep(1)  # No get() takes them in time.
    received = [subscriber.get(20) for _ in range(2)]
    assert [message.attempts for message in received] == [0, 0]


@streaming
def test_a_stream_that_brings_too_much_is_left_and_the_excess_given_back(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue, count = make_queue(ack_wait=20), 300
    # Messages in transit as a segment or a call ends are lost, and redelivered after their lease.
    lost = count / 5
    subscriber = subscribe(queue, max_concurrency=5)
    enqueue(engine, queue())
    received = [subscriber.get(20)]
    time.sleep(1)  # The queue is empty, so the subscriber streams.
    enqueue(engine, *(queue() for _ in range(count)))
    eventually(lambda: received.extend(subscriber.get_many(10, 0.1)) or len(received) == 5)
    assert subscriber.get(0.5) is None
    eventually(lambda: leased(engine, queue) <= 5 + lost, within=10)
    attempts: dict[int, int] = {}
    while len(attempts) <= count:
        for message in received or subscriber.get_many(5, 60):
            with suppress(AlreadySettled):
                ack(engine, message)
            attempts.setdefault(message.id, message.attempts)
        received = []
    # A release doesn't count as an attempt.
    assert sum(map(bool, attempts.values())) <= lost


@pulling
def test_workers_share_what_is_waiting(engine: Engine, make_queue: MakeQueue, work: Work) -> None:
    """A worker takes no more than twice what its handlers hold, so others have the rest."""
    queue, count = make_queue(ack_wait=60), 20
    enqueue(engine, *(queue() for _ in range(count)))
    done: list[list[int]] = [[], []]

    def handler_of(handled: list[int]) -> Callable[..., None]:
        def handle(message: Any, _session: Session) -> None:
            sleep(0.1)
            handled.append(message.id)

        return handle

    for handled in done:
        work(queue, handler_of(handled), concurrency=2)
    eventually(lambda: sum(map(len, done)) == count)
    assert min(map(len, done)) >= 5


@pytest.mark.parametrize("backend", PULLING[:1], indirect=True, ids=lambda b: b.name)
def test_a_limit_below_what_the_handlers_hold_is_kept_and_logged(
    engine: Engine, make_queue: MakeQueue, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(ack_wait=60)
    with caplog.at_level("WARNING"):
        work(queue, lambda *_: None, concurrency=4, subscriber_options={"max_concurrency": 3})
    assert "max_concurrency=3" in caplog.text
