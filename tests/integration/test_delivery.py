"""The guarantees of a queue, on every database and transport."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from sqla_vitess_messages import AlreadySettled, LeaseLost
from sqla_vitess_messages.rows.states import DEAD
from sqla_vitess_messages.transports.engines import dedicated_engine
from sqla_vitess_messages.transports.leaser import ShardLeaser
from sqla_vitess_messages.transports.shards import find_shards, shard_engine
from tests.backends import BACKENDS, EVERYWHERE, Backend, ack, enqueue, eventually, row

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]

everywhere = pytest.mark.parametrize("backend", EVERYWHERE, indirect=True, ids=lambda b: b.name)
postponing = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.server in (None, "vtgate", "vtgate-fast")],
    indirect=True,
    ids=lambda b: b.name,
)


@everywhere
def test_a_committed_message_arrives_and_its_ack_commits(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    sent = queue(body="hello")
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add(sent)
    message = subscribe(queue).get(20)
    assert (message.id, message.body, message.epoch) == (sent.id, "hello", 0)
    ack(engine, message)
    settled = row(engine, message)
    assert settled.time_acked is not None
    assert settled.time_next is None


def test_a_rolled_back_message_is_never_delivered(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(queue)
    with Session(engine) as session:
        session.add(queue(body="never"))
        session.flush()
        session.rollback()
    enqueue(engine, queue(body="after"))
    assert subscriber.get(20).body == "after"
    assert subscriber.get(0.5) is None


@everywhere
def test_an_unacked_message_comes_back_with_a_growing_epoch(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    received = [subscriber.get(20) for _ in range(3)]
    assert [message.epoch for message in received] == [0, 1, 2]
    assert len({message.id for message in received}) == 1
    ack(engine, received[-1])


def test_a_message_does_not_come_back_before_its_lease_ends(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1.5, min_backoff=0.001)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    assert subscriber.get(20).epoch == 0
    received = time.monotonic()
    assert subscriber.get(20).epoch == 1
    # Over a stream the first delivery can be read late, by up to the flush delay.
    assert time.monotonic() - received >= 1.3


@everywhere
def test_an_acked_message_does_not_come_back(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    ack(engine, subscriber.get(20))
    assert subscriber.get(2.5) is None


def test_an_ack_that_rolls_back_leaves_the_message_leased(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    with Session(engine) as session:
        message.ack(session)
        session.rollback()
    assert row(engine, message).time_acked is None
    again = subscriber.get(20)
    assert again.epoch == 1
    ack(engine, again)


@everywhere
def test_lower_priority_numbers_go_out_first(
    engine: Engine, queue: type[Any], subscribe: Subscribe, backend: Backend
) -> None:
    """Within a shard: Vitess's own message managers don't coordinate with each other either."""
    enqueue(engine, *(queue(priority=priority) for priority in range(90, 0, -10)))
    subscriber = subscribe(queue)
    got = [subscriber.get(20) for _ in range(9)]
    shards = find_shards(engine, queue.__table__) or [] if backend.server == "sharded" else []
    for shard in [shard_engine(engine, name) for name in shards] or [engine]:
        with shard.connect() as connection:
            ids = connection.scalars(select(queue.id)).all()
        order = [message.priority for message in got if message.id in ids]
        assert order == sorted(order)


@pytest.mark.parametrize("argument", ["deliver_in", "deliver_at"])
def test_a_scheduled_message_arrives_at_its_time_and_not_before(
    engine: Engine, queue: type[Any], subscribe: Subscribe, argument: str
) -> None:
    subscriber = subscribe(queue)
    at = datetime.now(UTC) + timedelta(seconds=1.5)
    message = queue(deliver_at=at) if argument == "deliver_at" else queue(deliver_in=1.5)
    enqueue(engine, message)
    received = subscriber.get(20)
    assert received is not None
    assert datetime.now(UTC) >= at
    ack(engine, received)


def test_the_first_ack_wins_even_a_late_one(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    late = subscriber.get(20)
    second = subscriber.get(20)
    assert (late.id, second.epoch) == (second.id, 1)
    ack(engine, late)
    with pytest.raises(AlreadySettled, match=str(second.id)) as raised:
        ack(engine, second)
    assert raised.value.message_ids == (second.id,)


def test_two_acks_at_once_let_one_transaction_commit(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    effects = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    holders = [subscriber.get(20), subscriber.get(20)]
    outcomes: Counter[str] = Counter()
    both = threading.Barrier(2)

    def handle(message: Any) -> None:
        both.wait()
        try:
            with Session(engine) as session, session.begin():
                message.ack(session)
                session.add(effects(body="done"))
            outcomes["won"] += 1
        except AlreadySettled:
            outcomes["lost"] += 1

    threads = [threading.Thread(target=handle, args=(message,)) for message in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"won": 1, "lost": 1}
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(effects)) == 1


def test_a_failed_message_is_dead(engine: Engine, queue: type[Any], subscribe: Subscribe) -> None:
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    with Session(engine) as session, session.begin():
        message.fail(session)
    assert subscriber.get(2.5) is None
    assert row(engine, message).time_next == DEAD
    with Session(engine) as session, pytest.raises(LeaseLost, match="settled already") as raised:
        message.retry(session)
    assert raised.value.message_ids == (message.id,)


def test_a_retry_brings_the_message_back_at_once(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    with Session(engine) as session, session.begin():
        message.retry(session, delay=0)
    again = subscriber.get(20)
    assert (again.id, again.epoch) == (message.id, 1)
    ack(engine, again)


def test_a_retry_waits_for_its_delay(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    started = time.monotonic()
    with Session(engine) as session, session.begin():
        message.retry(session, delay=timedelta(seconds=1))
    assert subscriber.get(20).id == message.id
    assert time.monotonic() - started >= 1


def test_a_retry_without_a_delay_waits_for_the_backoff(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(min_backoff=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    before = time.time_ns()
    with Session(engine) as session, session.begin():
        message.retry(session)
    delay = (row(engine, message).time_next - before) / 1e9
    assert 1 <= delay < 2


def test_an_extended_lease_keeps_the_message_away_from_others(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = subscriber.get(20)
    with Session(engine) as session, session.begin():
        message.extend(session, 6)
    assert subscriber.get(3) is None
    ack(engine, message)


@pytest.mark.parametrize("action", ["fail", "retry", "extend"])
def test_a_holder_whose_lease_moved_on_may_only_ack(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, action: str
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    late = subscriber.get(20)
    current = subscriber.get(20)
    eventually(lambda: row(engine, current).epoch == 2)
    arguments = {"fail": (), "retry": (0,), "extend": (10,)}[action]
    with Session(engine) as session, pytest.raises(LeaseLost, match=str(late.id)):
        getattr(late, action)(session, *arguments)
    ack(engine, late)


@pytest.mark.parametrize("action", ["fail", "retry", "extend"])
def test_a_holder_whose_lease_ran_out_may_only_ack(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, action: str
) -> None:
    """Even though nobody else has the message yet: Vitess may be sending it."""
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    late = subscriber.get(20)
    subscriber.close()
    eventually(lambda: row(engine, late).epoch == 1)
    eventually(lambda: row(engine, late).time_next < time.time_ns())
    arguments = {"fail": (), "retry": (0,), "extend": (10,)}[action]
    with Session(engine) as session, pytest.raises(LeaseLost, match="is over"):
        getattr(late, action)(session, *arguments)
    ack(engine, late)


def test_settlements_take_a_connection_too(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, *(queue() for _ in range(4)))
    one, two, three, four = (subscriber.get(20) for _ in range(4))
    with engine.begin() as connection:
        one.ack(connection)
        two.fail(connection)
        three.retry(connection, 60)
        four.extend(connection, 60)
    assert row(engine, one).time_acked is not None
    assert row(engine, two).time_next == DEAD
    assert row(engine, three).time_next > time.time_ns()
    assert row(engine, four).time_next > time.time_ns()


@everywhere
@pytest.mark.parametrize("action", ["ack_all", "fail_all", "retry_all", "extend_all"])
def test_many_messages_are_settled_together(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, action: str
) -> None:
    count = 1_100  # More than two chunks.
    queue = make_queue(batch_size=500)
    enqueue(engine, *(queue() for _ in range(count)))
    subscriber = subscribe(queue, max_concurrency=2_000)
    messages: list[Any] = []
    eventually(lambda: messages.extend(subscriber.get_many(2_000, 20)) or len(messages) == count)
    arguments = (3600,) if action in ("retry_all", "extend_all") else ()
    with Session(engine) as session, session.begin():
        getattr(queue, action)(session, messages, *arguments)
    columns = queue.__table__.c
    settled = {
        "ack_all": columns.time_acked.is_not(None),
        "fail_all": columns.time_next == DEAD,
        "retry_all": columns.time_next > time.time_ns() + 3_500 * 10**9,
        "extend_all": columns.time_next > time.time_ns() + 3_500 * 10**9,
    }[action]
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).where(settled)) == count


def test_one_message_already_acked_stops_the_whole_bulk_ack(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, *(queue() for _ in range(3)))
    subscriber = subscribe(queue)
    messages = [subscriber.get(20) for _ in range(3)]
    ack(engine, messages[1])
    with pytest.raises(AlreadySettled), Session(engine) as session, session.begin():
        queue.ack_all(session, messages)
    assert row(engine, messages[0]).time_acked is None


@postponing
def test_fail_survives_the_postpone_that_follows_delivery(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """Vitess postpones a message after sending it: unfenced, 3 to 16 % of fails were undone."""
    queue = make_queue(ack_wait=5)
    subscriber = subscribe(queue, max_concurrency=300)
    enqueue(engine, *(queue() for _ in range(300)))
    settled = 0
    while settled < 300:
        message = subscriber.get(20)
        with suppress(LeaseLost), Session(engine) as session, session.begin():
            message.fail(session)
            settled += 1
    time.sleep(1)
    with engine.connect() as connection:
        dead = select(func.count()).where(queue.__table__.c.time_next == DEAD)
        assert connection.scalar(dead) == 300


@postponing
def test_retry_survives_the_postpone_that_follows_delivery(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=5)
    subscriber = subscribe(queue, max_concurrency=300)
    enqueue(engine, *(queue() for _ in range(300)))
    settled = 0
    while settled < 300:
        message = subscriber.get(20)
        with suppress(LeaseLost), Session(engine) as session, session.begin():
            message.retry(session, delay=36_000)
            settled += 1
    time.sleep(1)
    with engine.connect() as connection:
        late = queue.__table__.c.time_next > time.time_ns() + 35_000 * 10**9
        assert connection.scalar(select(func.count()).where(late)) == 300


def test_two_subscribers_share_the_messages(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscribers = [subscribe(queue, max_concurrency=10) for _ in range(2)]
    received: list[list[int]] = [[], []]
    done = threading.Event()

    def consume(subscriber: Any, ids: list[int]) -> None:
        while not done.is_set():
            message = subscriber.get(0.2)
            if message is None:
                continue
            with suppress(
                AlreadySettled
            ):  # Delivery is at least once: a busy Vitess may deliver again.
                ack(engine, message)
                ids.append(message.id)

    threads = [
        threading.Thread(target=consume, args=(subscriber, ids))
        for subscriber, ids in zip(subscribers, received, strict=True)
    ]
    for thread in threads:
        thread.start()
    sent = 0

    def unsettled() -> int:
        return sent - sum(map(len, received))

    try:
        # One may connect while the other has all messages: go on until both have received enough.
        while min(map(len, received)) < 50:
            assert sent < 2000
            enqueue(engine, *(queue() for _ in range(10)))
            sent += 10
            eventually(lambda: unsettled() < 200, within=40)
        eventually(lambda: unsettled() == 0, within=40)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    ids = received[0] + received[1]
    assert len(set(ids)) == len(ids) == sent


def test_acked_messages_are_purged_and_others_stay(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(purge_after=0.5, poller_interval=0.5)
    subscriber = subscribe(queue)
    enqueue(engine, queue(), queue())
    acked, failed = subscriber.get(20), subscriber.get(20)
    with Session(engine) as session, session.begin():
        acked.ack(session)
        failed.fail(session)
    eventually(lambda: row(engine, acked) is None)
    assert row(engine, failed) is not None
    with pytest.raises(AlreadySettled):
        ack(engine, acked)


def test_core_inserts_arrive_like_orm_ones(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    with engine.begin() as connection:
        connection.execute(insert(queue).values(body="single"))
        connection.execute(insert(queue), [{"body": "list 1"}, {"body": "list 2"}])
    with Session(engine) as session, session.begin():
        session.execute(insert(queue), [{"body": "bulk 1"}, {"body": "bulk 2"}])
    got = {subscriber.get(20).body for _ in range(5)}
    assert got == {"single", "list 1", "list 2", "bulk 1", "bulk 2"}


def test_a_message_of_a_new_priority_is_noticed_at_once(
    engine: Engine, make_queue: MakeQueue, url: str
) -> None:
    """Though the priorities in use were found a moment before."""
    queue = make_queue(layout="minimal")
    leaser: ShardLeaser[Any] = ShardLeaser(queue, dedicated_engine(url))
    assert leaser.lease(1).messages == []
    enqueue(engine, queue())
    assert leaser.seconds_until_due() == 0
    leaser.close()


def test_the_minimal_layout_works_too(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1, layout="minimal")
    subscriber = subscribe(queue)
    enqueue(engine, queue(body="small"))
    first = subscriber.get(20)
    second = subscriber.get(20)
    assert (first.body, second.epoch) == ("small", 1)
    with Session(engine) as session, session.begin():
        second.fail(session)
    assert row(engine, second).time_next == DEAD


def test_a_message_table_does_not_stop_the_next_one(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, backend: Backend
) -> None:
    """A malformed message table would stop the schema reloading of the tablet."""
    columns = ["id", "epoch", "time_scheduled", "body"]
    if backend.server == "sharded":
        columns.append("tenant")
    make_queue(max_backoff=3600, message_cols=columns)
    after = make_queue()
    enqueue(engine, after(body="still reloading"))
    assert subscribe(after).get(20).body == "still reloading"
