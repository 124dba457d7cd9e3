"""Dead messages, and the number of messages in each state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Text, create_engine
from sqlalchemy.orm import Mapped, Session, mapped_column

from sqla_vitess_messages import InvalidArgument, InvalidArgumentType, QueueStats
from tests.backends import ack, enqueue, eventually, row
from tests.faults import interrupted

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]


def kill(engine: Engine, subscriber: Any, reason: str | None = None) -> Any:
    """Receive a message and fail it."""
    message = subscriber.get(20)
    with Session(engine) as session, session.begin():
        message.fail(session, reason)
    return message


def test_dead_messages_are_found_and_put_back(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, queue(body="first"))
    kill(engine, subscriber)
    enqueue(engine, queue(body="second"))
    second = kill(engine, subscriber)
    with Session(engine) as session:
        assert {message.body for message in queue.dead(session)} == {"first", "second"}
        assert len(queue.dead(session, limit=1)) == 1
    subscriber.close()
    with Session(engine) as session, session.begin():
        assert queue.requeue(session, [second]) == 1
        assert queue.requeue(session, [second]) == 0
    with subscriber:
        again = subscriber.get(20)
        assert (again.body, again.attempts, again.epoch > second.epoch) == ("second", 0, True)
        with Session(engine) as session, session.begin():
            assert queue.requeue(session) == 1
        assert subscriber.get(20).body == "first"


def test_dead_messages_are_requeued_by_ids_and_by_a_condition(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, *(queue(body=body) for body in "abc"))
    dead = {message.body: message for message in (kill(engine, subscriber) for _ in range(3))}
    subscriber.close()
    enqueue(engine, queue(body="a", deliver_in=3600))
    with Session(engine) as session, session.begin():
        assert queue.requeue(session, queue.body == "a") == 1
        assert queue.requeue(session, [dead["b"].id, dead["a"].id, 1]) == 1
        assert [message.body for message in queue.dead(session)] == ["c"]
        stats = queue.stats(session)
        assert (stats.ready, stats.scheduled, stats.dead) == (2, 1, 1)
        with pytest.raises(InvalidArgumentType, match="neither a Message nor the id of one"):
            queue.requeue(session, [True])


def test_dead_messages_are_deleted_by_age(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    message = kill(engine, subscriber)
    enqueue(engine, queue(body="alive", deliver_in=3600))
    with Session(engine) as session, session.begin():
        assert queue.purge_dead(session, older_than=timedelta(hours=1)) == 0
        assert queue.purge_dead(session, older_than=0) == 1
    assert row(engine, message) is None
    with engine.begin() as connection:
        assert queue.stats(connection).scheduled == 1


def test_what_is_requeued_meanwhile_is_not_deleted(
    engine: Engine, url: str, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    enqueue(engine, queue(), queue())
    kept, _deleted = (kill(engine, subscriber) for _ in range(2))
    subscriber.close()
    other = create_engine(url)

    def requeue() -> None:
        with Session(other) as session, session.begin():
            assert queue.requeue(session, [kept]) == 1

    with Session(engine) as session, session.begin(), interrupted(engine, "DELETE", requeue):
        assert queue.purge_dead(session) == 1
    other.dispose()
    assert row(engine, kept) is not None
    with Session(engine) as session:
        assert queue.stats(session).ready == 1


def test_the_minimal_layout_knows_no_age(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue(layout="minimal")
    with Session(engine) as session:
        assert queue.purge_dead(session) == 0
        with pytest.raises(InvalidArgument, match="older_than=5: the minimal layout"):
            queue.purge_dead(session, older_than=5)


def test_a_reason_is_kept_where_the_model_has_a_column_for_it(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, caplog: pytest.LogCaptureFixture
) -> None:
    column = {
        "__annotations__": {"body": Mapped[str], "fail_reason": Mapped[str | None]},
        "fail_reason": mapped_column(Text),
    }
    queue = make_queue(attributes=column)
    enqueue(engine, queue())
    message = kill(engine, subscribe(queue), "no such address")
    assert row(engine, message).fail_reason == "no such address"
    assert f"message {message.id} failed: no such address" in caplog.text


def test_a_message_that_nobody_settles_dies_after_its_attempts(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """For example one that kills its process, so that no handler counts the attempt."""
    queue = make_queue(ack_wait=2)
    subscriber = subscribe(queue, max_attempts=2)
    enqueue(engine, queue())
    assert [subscriber.get(20).epoch for _ in range(2)] == [0, 1]

    def dead() -> list[Any]:
        with Session(engine) as session:
            found: list[Any] = queue.dead(session)
            return found

    (message,) = eventually(dead)
    assert message.attempts >= 3
    assert subscriber.get(1) is None


@pytest.mark.parametrize("layout", ["portable", "minimal"])
def test_stats_count_every_state(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, layout: str
) -> None:
    queue = make_queue(layout=layout)
    subscriber = subscribe(queue, max_concurrency=4)
    with engine.connect() as connection:
        assert queue.stats(connection) == QueueStats(0, 0, 0, 0, 0, None)
    enqueue(engine, *(queue() for _ in range(4)), queue(deliver_in=3600))
    messages = [subscriber.get(20) for _ in range(4)]
    ack(engine, messages[0], messages[1])
    with Session(engine) as session, session.begin():
        messages[2].fail(session)
    subscriber.close()
    enqueue(engine, queue(), queue())
    with Session(engine) as session:
        stats = queue.stats(session)
    age = stats.oldest_ready_age
    assert age is not None
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert stats == QueueStats(
        ready=2, scheduled=1, leased=1, dead=1, acked=2, oldest_ready_age=age
    )
