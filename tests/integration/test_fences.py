"""Each lease has a fence of its own: an earlier holder never reaches a later one's lease."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqla_vitess_messages import LeaseLost
from sqla_vitess_messages.rows.epochs import GENERATION
from sqla_vitess_messages.rows.states import DEAD
from sqla_vitess_messages.transports.engines import dedicated_engine
from sqla_vitess_messages.transports.leaser import ShardLeaser
from tests.backends import BACKENDS, EVERYWHERE, PULLING, STREAMS, ack, enqueue, eventually, row
from tests.faults import call_transport, engine_of, lost_answers

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]

everywhere = pytest.mark.parametrize("backend", EVERYWHERE, indirect=True, ids=lambda b: b.name)
streaming = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.transport in STREAMS and backend.driver is None],
    indirect=True,
    ids=lambda b: b.name,
)

pulling = pytest.mark.parametrize("backend", PULLING, indirect=True, ids=lambda b: b.name)

ARGUMENTS: dict[str, tuple[Any, ...]] = {"fail": ("late",), "retry": (0,), "extend": (60,)}


def settle(engine: Engine, message: Any, action: str) -> None:
    with Session(engine) as session, session.begin():
        getattr(message, action)(session, *ARGUMENTS[action])


def is_leased_by(engine: Engine, message: Any) -> bool:
    found = row(engine, message)
    return bool(found.epoch == message.epoch + 1 and found.time_next > time.time_ns())


@everywhere
def test_a_holder_from_before_a_requeue_may_only_ack(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=2, min_backoff=0.001)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    stalled = subscriber.get(20)
    second = subscriber.get(20)
    settle(engine, second, "fail")
    with Session(engine) as session, session.begin():
        assert queue.requeue(session) == 1
    third = subscriber.get(20)
    assert (stalled.id, stalled.attempts) == (third.id, third.attempts) == (third.id, 0)
    eventually(lambda: is_leased_by(engine, third), within=2)
    for action in ARGUMENTS:
        with pytest.raises(LeaseLost, match="is over"):
            settle(engine, stalled, action)
    assert is_leased_by(engine, third)
    ack(engine, third)


@everywhere
def test_a_release_whose_answer_was_lost_touches_no_later_lease(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=30)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    unseen = subscriber.get(20)
    with lost_answers(engine_of(subscriber)) as lost:
        with pytest.raises(OperationalError):
            call_transport(subscriber, "release", [unseen])
        assert lost
    later = subscriber.get(20)
    assert (later.id, later.attempts) == (unseen.id, 0)
    eventually(lambda: is_leased_by(engine, later))
    call_transport(subscriber, "release", [unseen])
    assert is_leased_by(engine, later)
    settle(engine, later, "fail")


def test_a_dead_message_is_not_released(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=30)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    settle(engine, message, "fail")
    call_transport(subscriber, "release", [message])
    with Session(engine) as session:
        assert queue.stats(session).dead == 1


@pulling
def test_a_lease_that_nobody_got_counts_as_no_attempt(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """The COMMITs of five leases are not answered: otherwise, the message would be dead by now."""
    queue = make_queue(ack_wait=60)
    subscriber = subscribe(queue, max_attempts=1)
    assert subscriber.get(0.1) is None
    with lost_answers(engine_of(subscriber), 5) as lost:
        enqueue(engine, queue())
        message = subscriber.get(30)
    assert len(lost) == 5
    assert message.attempts == 0
    assert is_leased_by(engine, message)
    ack(engine, message)


@pulling
def test_a_lease_that_did_not_commit_is_taken_from_nobody_else(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, url: str
) -> None:
    queue = make_queue(ack_wait=60)
    subscriber = subscribe(queue)
    assert subscriber.get(0.1) is None
    # Its next lease is lost, and is another's before it connects again.
    other: ShardLeaser[Any] = ShardLeaser(queue, dedicated_engine(url))
    got: list[Any] = []
    with lost_answers(
        engine_of(subscriber), committed=False, then=lambda: got.append(other.lease(1))
    ):
        enqueue(engine, queue())
        eventually(lambda: got)
    [message] = got[0].messages
    assert subscriber.get(1) is None
    assert is_leased_by(engine, message)
    settle(engine, message, "fail")
    other.close()


@streaming
def test_vitess_postpones_a_later_generation_by_its_shortest_backoff(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """It shifts by the whole epoch, and each bit is shifted out."""
    queue = make_queue(ack_wait=20, min_backoff=2, poller_interval=0.5)
    subscriber = subscribe(queue)

    def postponed_for() -> float:
        """Return for how many seconds a message of the fourth generation is postponed."""
        enqueue(engine, queue())
        message = subscriber.get(20)
        try:
            settle(engine, message, "fail")
        except LeaseLost:
            ack(engine, message)
            return math.inf
        with engine.begin() as connection:
            later = update(queue).where(queue.time_next == DEAD)
            connection.execute(later.values(epoch=3 * GENERATION + 7, time_next=1))
        message = subscriber.get(20)
        assert (message.epoch, message.attempts) == (3 * GENERATION + 7, 7)
        eventually(lambda: row(engine, message).epoch == message.epoch + 1)
        seconds: float = (row(engine, message).time_next - time.time_ns()) / 1e9
        ack(engine, message)
        return seconds

    # What a busy server is slow to stream, or to postpone, is pulled: that loses the lease of a
    # message that was streamed, and another one has the backoff of its attempts.
    eventually(lambda: postponed_for() < 22, within=60)
