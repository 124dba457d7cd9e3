"""Settlements outside a transaction of the caller, many of them in one commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event

from sqla_vitess_messages import (
    AlreadySettled,
    InvalidArgument,
    InvalidArgumentType,
    LeaseLost,
    SubscriberClosed,
)
from sqla_vitess_messages.rows.states import DEAD
from tests.backends import ack, enqueue, row

Subscribe = Callable[..., Any]


def receive(subscriber: Any, count: int) -> list[Any]:
    """Receive ``count`` different messages."""
    found: dict[int, Any] = {}
    while len(found) < count:
        for message in subscriber.get_many(count, 20):
            found[message.id] = message
    return list(found.values())


def test_each_settlement_is_committed_when_its_future_says_so(
    engine: Engine, make_queue: Callable[..., Any], subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, *(queue() for _ in range(3)))
    subscriber = subscribe(queue)
    acked, failed, retried = receive(subscriber, 3)
    subscriber.ack(acked).result(20)
    assert row(engine, acked).time_acked is not None
    subscriber.fail(failed, "broken").result(20)
    assert row(engine, failed).time_next == DEAD
    subscriber.retry(retried, 0).result(20)
    again = subscriber.get(20)
    assert (again.id, again.epoch) == (retried.id, 1)


def test_many_settlements_share_commits(
    engine: Engine, make_queue: Callable[..., Any], subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, *(queue() for _ in range(200)))
    subscriber = subscribe(queue, max_concurrency=200)
    messages = receive(subscriber, 200)
    updates: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def record(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "time_acked=" in statement.replace(" ", "") and statement.startswith("UPDATE"):
            updates.append(statement)

    try:
        futures = [subscriber.ack(message) for message in messages]
        assert subscriber.flush(20)
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    assert all(future.done() for future in futures)
    assert all(row(engine, message).time_acked for message in messages)
    assert 1 <= len(updates) <= 20


def test_one_bad_settlement_fails_alone(
    engine: Engine, make_queue: Callable[..., Any], subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, *(queue() for _ in range(9)))
    subscriber = subscribe(queue)
    messages = receive(subscriber, 9)
    ack(engine, messages[4])
    futures = [subscriber.ack(message) for message in messages]
    retried = subscriber.retry(messages[4])
    subscriber.flush(20)
    errors = [future.exception(20) for future in futures]
    assert [type(error) for error in errors if error] == [AlreadySettled]
    assert isinstance(errors[4], AlreadySettled)
    assert isinstance(retried.exception(20), LeaseLost)
    assert all(row(engine, message).time_acked for message in messages)


def test_close_commits_what_was_handed_in(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue())
    subscriber = subscribe(queue)
    future = subscriber.ack(subscriber.get(20))
    subscriber.close()
    assert future.done()
    assert future.exception() is None
    with pytest.raises(SubscriberClosed):
        subscriber.flush()


def test_a_wrong_argument_spoils_no_other_settlement(
    engine: Engine, make_queue: Callable[..., Any], subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, *(queue() for _ in range(12)))
    subscriber = subscribe(queue)
    wrong, later, *others = receive(subscriber, 12)
    futures = [subscriber.ack(message) for message in others[:5]]
    with pytest.raises(InvalidArgumentType, match="reason="):
        subscriber.fail(wrong, ["a list"]).result(20)
    with pytest.raises(InvalidArgument, match="delay=-1"):
        subscriber.retry(later, -1).result(20)
    futures += [subscriber.ack(message) for message in others[5:]]
    for future in futures:
        future.result(20)
    assert all(row(engine, message).time_acked is not None for message in others)
    subscriber.ack(wrong).result(20)
