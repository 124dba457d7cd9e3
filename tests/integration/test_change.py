"""Messages that wait can be cancelled, rescheduled and run at once; those in work are guarded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_vitess_messages import AlreadySettled, LeaseLost, RetryPolicy
from sqla_vitess_messages.failures import MessageFailuresMixin
from sqla_vitess_messages.rows.transient import retry_transaction
from tests.backends import (
    BACKENDS,
    Backend,
    ack,
    async_url,
    eventually,
    pulling_in_threads,
    row,
)

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]

MANY = 12_000
"""More rows than Vitess allows in a result or an UPDATE."""


def keep_failures(make_queue: MakeQueue, **options: Any) -> type[Any]:
    base: Any = type("Base", (MessageFailuresMixin, DeclarativeBase), {})
    return make_queue(base=base, **options)


def enqueue(engine: Engine, *messages: Any) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add_all(messages)


def change(engine: Engine, method: Callable[..., int], *arguments: Any, **options: Any) -> int:
    with Session(engine) as session, session.begin():
        return method(session, *arguments, **options)


def settle(engine: Engine, message: Any, action: str, *arguments: Any) -> None:
    with Session(engine) as session, session.begin():
        getattr(message, action)(session, *arguments)


def count(engine: Engine, queue: type[Any], *conditions: Any) -> int:
    with engine.connect() as connection:
        counting = select(func.count()).select_from(queue).where(*conditions)
        return int(connection.scalar(counting) or 0)


def test_what_is_cancelled_is_never_delivered(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    named, by_id, by_condition, kept = (queue(body=body) for body in "abcd")
    later = queue(body="e", deliver_in=3600)
    enqueue(engine, named, by_id, by_condition, kept, later)
    assert change(engine, queue.cancel, [named, by_id.id, named, 2**70]) == 2
    assert change(engine, queue.cancel, queue.body.in_(["a", "b", "c", "e"])) == 2
    assert change(engine, queue.cancel, []) == 0
    subscriber = subscribe(queue)
    assert subscriber.get(20).id == kept.id
    assert subscriber.get(0.5) is None


def test_dead_messages_are_cancelled_and_acked_ones_are_not(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue)
    dead, acked = subscriber.get(20), subscriber.get(20)
    settle(engine, dead, "fail")
    ack(engine, acked)
    assert change(engine, queue.cancel, [dead, acked]) == 1
    assert row(engine, dead) is None
    assert row(engine, acked).time_acked is not None


def test_the_ack_of_what_was_cancelled_meanwhile_raises(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue)
    first, second = subscriber.get(20), subscriber.get(20)
    assert change(engine, queue.cancel, [first, second]) == 2
    with pytest.raises(AlreadySettled, match=str(first.id)):
        settle(engine, first, "ack")
    for action, *arguments in (("fail",), ("retry", 0), ("extend", 60)):
        with pytest.raises(LeaseLost):
            settle(engine, second, action, *arguments)


def test_a_message_that_its_own_transaction_has_deleted_by_a_statement_is_not_acked(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue())
    message = subscribe(queue).get(20)
    with Session(engine) as session:
        session.execute(delete(queue).where(queue.id == message.id))
        with pytest.raises(AlreadySettled, match=r"use Message.cancel\(session, …\)"):
            message.ack(session)
    assert row(engine, message).time_acked is None


def test_cancelling_a_message_in_a_loop_of_ones_own_frees_its_slot(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue, max_concurrency=1)
    for _ in range(2):
        message = subscriber.get(20)
        assert message is not None  # Though each lease would last for 10 s.
        assert change(engine, queue.cancel, [message]) == 1


def test_the_effect_of_a_message_cancelled_while_it_is_handled_is_rolled_back(
    engine: Engine, make_queue: MakeQueue, work: Callable[..., Any]
) -> None:
    queue, effects = make_queue(), make_queue()
    cancelled: list[int] = []

    def handle(message: Any, session: Session) -> None:
        effect = effects(body=message.body)
        if message.body == "cancelled":
            with Session(engine) as other, other.begin():
                cancelled.append(queue.cancel(other, [message.id]))
        session.add(effect)

    work(queue, handle)
    enqueue(engine, queue(body="cancelled"))
    eventually(lambda: cancelled == [1] and count(engine, queue) == 0)
    enqueue(engine, queue(body="handled"))
    eventually(lambda: count(engine, effects) == 1)
    assert count(engine, effects, effects.body == "handled") == 1


def test_a_scheduled_message_is_moved_to_another_time(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(queue)
    at_once, soon, later = (queue(deliver_in=3600) for _ in range(3))
    enqueue(engine, at_once, soon, later)
    assert change(engine, queue.run_now, [at_once]) == 1
    assert subscriber.get(20).id == at_once.id
    assert change(engine, queue.reschedule, [soon], deliver_in=timedelta(seconds=1)) == 1
    at = datetime.now(UTC) + timedelta(days=1)
    assert change(engine, queue.reschedule, queue.id == later.id, deliver_at=at) == 1
    assert subscriber.get(20).id == soon.id
    assert subscriber.get(0.3) is None
    with Session(engine) as session:
        found = session.scalars(select(queue).where(queue.deliver_at > at - timedelta(hours=1)))
        assert [message.deliver_at for message in found] == [at]


def test_a_ready_message_can_be_put_off(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue(body="later"), queue(body="now"))
    assert change(engine, queue.reschedule, queue.body == "later", deliver_in=3600) == 1
    subscriber = subscribe(queue)
    assert subscriber.get(20).body == "now"
    assert subscriber.get(0.5) is None


def test_what_somebody_has_and_what_is_settled_is_never_rescheduled(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = keep_failures(make_queue)
    enqueue(engine, *(queue() for _ in range(4)))
    subscriber = subscribe(queue)
    leased, dead, acked = (subscriber.get(20) for _ in range(3))
    waiting_in_the_subscriber = queue.id.not_in([leased.id, dead.id, acked.id])
    eventually(lambda: count(engine, queue, waiting_in_the_subscriber, queue.state == "leased"))
    settle(engine, dead, "fail")
    ack(engine, acked)
    with engine.connect() as connection:
        before = connection.execute(select(queue.__table__).order_by(queue.id)).all()
    assert change(engine, queue.run_now, queue.id > 0) == 0
    assert change(engine, queue.reschedule, [leased, dead, acked], deliver_in=5) == 0
    with engine.connect() as connection:
        assert connection.execute(select(queue.__table__).order_by(queue.id)).all() == before
    ack(engine, leased)


def test_all_retries_can_be_run_at_once(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = keep_failures(make_queue)
    enqueue(engine, *(queue(body=str(n)) for n in range(3)))
    subscriber = subscribe(queue)
    held, *failed = (subscriber.get(20) for _ in range(3))
    for message in failed:
        settle(engine, message, "retry", 3600, "the bug")
    assert change(engine, queue.run_now, queue.state == "retrying") == 2
    again = [subscriber.get(20) for _ in range(2)]
    assert {message.id for message in again} == {message.id for message in failed}
    assert {message.attempts for message in again} == {1}
    assert held.id not in {message.id for message in again}
    ack(engine, held, *again)


def test_a_retry_that_is_put_off_can_be_moved_again(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = keep_failures(make_queue)
    enqueue(engine, queue())
    subscriber = subscribe(queue)
    message = subscriber.get(20)
    settle(engine, message, "retry", 3600)
    for _ in range(2):
        assert change(engine, queue.reschedule, [message], deliver_in=3600) == 1
        assert count(engine, queue, queue.state == "retrying") == 1
    assert change(engine, queue.run_now, [message]) == 1
    again = subscriber.get(20)
    assert (again.id, again.attempts) == (message.id, 1)
    ack(engine, again)


def test_without_kept_failures_what_waits_for_its_retry_stays(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue())
    message = subscribe(queue).get(20)
    settle(engine, message, "retry", 3600)
    assert change(engine, queue.run_now, [message]) == 0


def test_a_holder_whose_lease_ran_out_before_a_reschedule_may_only_ack(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1, min_backoff=0.001)
    enqueue(engine, queue())
    subscriber = subscribe(queue)
    message = subscriber.get(20)
    subscriber.close()
    eventually(lambda: change(engine, queue.reschedule, [message], deliver_in=3600) == 1)
    for action, *arguments in (("fail",), ("retry", 0), ("extend", 60)):
        with pytest.raises(LeaseLost):
            settle(engine, message, action, *arguments)
    ack(engine, message)


@pulling_in_threads
def test_as_many_messages_as_there_are_can_be_changed(
    engine: Engine, make_queue: MakeQueue
) -> None:
    queue = make_queue()
    with engine.begin() as connection:
        for _ in range(MANY // 2000):
            connection.execute(insert(queue), [{"body": "x"} for _ in range(2000)])
    assert change(engine, queue.reschedule, queue.body == "x", deliver_in=3600) == MANY
    assert count(engine, queue, queue.state == "scheduled") == MANY
    with engine.connect() as connection:
        ids = list(connection.scalars(select(queue.id).limit(9_000)))
    assert change(engine, queue.run_now, ids) == 9_000
    assert change(engine, queue.cancel, queue.state.in_(["ready", "scheduled"])) == MANY
    assert count(engine, queue) == 0


@pulling_in_threads
def test_a_session_is_flushed_and_a_rollback_undoes_it_all(
    engine: Engine, queue: type[Any]
) -> None:
    enqueue(engine, queue(body="old"))
    with Session(engine) as session:
        new = queue(body="new", deliver_in=60)
        session.add(new)
        assert queue.cancel(session, [new]) == 1
        assert queue.cancel(session, queue.body == "old") == 1
        session.rollback()
    assert count(engine, queue, queue.body == "old") == 1
    with engine.begin() as connection:
        assert queue.cancel(connection, queue.body == "old") == 1


@pulling_in_threads
def test_a_message_that_its_session_has_expired_is_found(engine: Engine, queue: type[Any]) -> None:
    message = queue()
    with Session(engine) as session:
        session.add(message)
        session.commit()
    assert change(engine, queue.cancel, [message]) == 1


@pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b.name == "vitess-sharded"], indirect=True
)
def test_in_a_sharded_keyspace_statements_name_the_shards_of_the_messages(
    engine: Engine, queue: type[Any]
) -> None:
    messages = [queue(deliver_in=60) for _ in range(4)]
    enqueue(engine, *messages)
    statements: list[str] = []
    event.listen(
        engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    with Session(engine) as session, session.begin():
        keys = [message.id for message in session.scalars(select(queue))]
        statements.clear()
        assert queue.cancel(session, keys[:1]) == 1
        assert queue.run_now(session, queue.id.in_(keys)) == 3
    changing = [text for text in statements if not text.startswith("SELECT")]
    assert len(changing) == 2
    assert all("tenant` IN" in text or "tenant IN" in text for text in changing)


@pulling_in_threads
def test_it_works_in_coroutines(
    engine: Engine, url: str, queue: type[Any], backend: Backend
) -> None:
    enqueue(engine, queue(body="a"), queue(body="b", deliver_in=60))

    async def run() -> list[int]:
        driver = "aiosqlite" if backend.server is None else "asyncmy"
        other = create_async_engine(async_url(url, driver))
        try:
            async with AsyncSession(other) as session, session.begin():
                return [
                    await session.run_sync(queue.run_now, queue.state == "scheduled"),
                    await session.run_sync(queue.cancel, queue.body == "a"),
                ]
        finally:
            await other.dispose()

    assert asyncio.run(run()) == [1, 1]
    assert count(engine, queue, queue.state == "ready") == 1


def test_a_reschedule_in_a_transaction_that_waits_for_a_delivery_changes_nothing(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    """Rows are checked again when they are changed, not only when they are found."""
    enqueue(engine, queue())
    message = subscribe(queue).get(20)
    eventually(lambda: row(engine, message).time_next > time.time_ns())
    assert change(engine, queue.reschedule, [message.id], deliver_in=3600) == 0
    ack(engine, message)


@pulling_in_threads
@pytest.mark.parametrize("action", ["cancel", "run_now"])
def test_a_change_locks_no_other_message(
    engine: Engine, queue: type[Any], backend: Backend, action: str
) -> None:
    if backend.server is None:
        pytest.skip("SQLite allows one writer at a time")
    messages = [queue(deliver_in=60) for _ in range(20)]
    enqueue(engine, *messages)
    with Session(engine) as session, session.begin():
        assert getattr(queue, action)(session, messages[:3]) == 3
        ack(engine, *messages[3:])
        # A shard may get ids that it hasn't, and MySQL then locks the gaps where they would be.
        if backend.server != "sharded":
            enqueue(engine, queue())
    with Session(engine) as session, session.begin():
        condition = queue.id.in_([message.id for message in messages[:3]])
        assert getattr(queue, action)(session, condition) == (0 if action == "cancel" else 3)


def test_each_message_is_either_handled_once_or_cancelled(
    engine: Engine, make_queue: MakeQueue, work: Callable[..., Any]
) -> None:
    """While workers handle messages, others cancel and reschedule them."""
    queue, effects = keep_failures(make_queue, ack_wait=30), make_queue()
    attempt = iter(range(10**6))

    def handle(message: Any, session: Session) -> None:
        session.add(effects(body=str(message.id)))
        if next(attempt) % 7 == 0:
            raise ValueError

    messages = [queue() for _ in range(150)]
    ids = [message.id for message in messages]
    enqueue(engine, *messages)
    work(queue, handle, concurrency=3, retry=RetryPolicy(max_attempts=None, min_delay=0.05))
    cancelled = set()
    for n, message_id in enumerate(ids):
        changes = [(queue.cancel, {}), (queue.run_now, {}), (queue.reschedule, {"deliver_in": 0.1})]
        method, options = changes[n % 3]
        changed = retry_transaction(partial(change, engine, method, [message_id], **options))
        if n % 3 == 0 and changed:
            cancelled.add(message_id)
    assert set(queue.wait(engine, ids, 90)) <= {"acked", "purged"}
    with Session(engine) as session:
        done = [int(body) for body in session.scalars(select(effects.body))]
    assert len(done) == len(set(done))
    assert cancelled.isdisjoint(done)
    assert cancelled.union(done) == set(ids)
