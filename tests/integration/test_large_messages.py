"""Messages that are too large for one answer of vtgate, together or alone, hold up nothing.

By default Vitess transfers at most 16 MB from a tablet to vtgate, and from there over gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.dialects.mysql import LONGBLOB
from sqlalchemy.orm import Session, mapped_column

from sqla_vitess_messages import AlreadySettled
from tests.backends import BACKENDS, STREAMS, ack, enqueue, eventually

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]

SIZE = 4_000_000
COUNT = 6

PATIENCE = 60.0
"""Seconds to wait for these many megabytes, on a machine with other work."""

VITESS = [b for b in BACKENDS if b.name.startswith("vitess") and b.server != "sharded"]
vitess = pytest.mark.parametrize("backend", VITESS, indirect=True, ids=lambda b: b.name)
pulling = pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b.name in ("vitess", "vitess-sharded")],
    indirect=True, ids=lambda b: b.name,
)  # fmt: skip
streaming = pytest.mark.parametrize(
    "backend", [b for b in VITESS if b.transport in STREAMS], indirect=True, ids=lambda b: b.name
)


def make_pictures(make_queue: MakeQueue, **options: Any) -> type[Any]:
    columns = {name: mapped_column(LONGBLOB, default=b"") for name in ("one", "two", "three")}
    return make_queue(attributes=columns, **options)


def enqueue_large(engine: Engine, queue: type[Any], **options: Any) -> None:
    for _ in range(COUNT):
        enqueue(engine, queue(one=b"x" * SIZE, **options))


def enqueue_too_large(engine: Engine, queue: type[Any]) -> None:
    """Enqueue a message that no statement could insert, and none can select."""
    enqueue(engine, queue(priority=1, deliver_in=60))
    table = queue.__table__
    for name in ("one", "two", "three"):
        with engine.begin() as connection:
            connection.execute(update(table).values({name: b"x" * 6_000_000}))
    with engine.begin() as connection:
        connection.execute(update(table).values(time_next=0))


def receive(engine: Engine, subscriber: Any, count: int) -> dict[int, int]:
    """Receive and ack so many messages; return the attempts of each."""
    attempts: dict[int, int] = {}

    def receive_more() -> bool:
        for message in subscriber.get_many(100, 0.1):
            attempts[message.id] = message.attempts
            with suppress(AlreadySettled):  # It came again when a short lease had ended.
                ack(engine, message)
        return len(attempts) == count

    eventually(receive_more, within=PATIENCE)
    return attempts


@vitess
def test_a_backlog_of_large_messages_is_received(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_pictures(make_queue, ack_wait=60)
    enqueue_large(engine, queue)
    attempts = receive(engine, subscribe(queue), COUNT)
    assert set(attempts.values()) == {0}


@vitess
def test_a_message_that_is_too_large_alone_is_dead_and_the_others_are_received(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_pictures(make_queue, ack_wait=1.5, min_backoff=0.05, max_backoff=0.1)
    enqueue_too_large(engine, queue)
    enqueue(engine, *(queue(priority=2) for _ in range(20)))
    # A stream loses the others along with it, for an attempt or two.
    subscriber = subscribe(queue, max_attempts=6)
    receive(engine, subscriber, 20)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        eventually(lambda: queue.stats(connection).dead == 1, within=PATIENCE)


@pulling
def test_a_pull_that_fails_leaves_no_row_locked(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """Nobody can end a transaction that vtgate has lost with the answer to its first statement."""
    queue = make_pictures(make_queue, ack_wait=60)
    enqueue_large(engine, queue, **({"tenant": 1} if "tenant" in queue.__table__.c else {}))
    subscriber = subscribe(queue, max_concurrency=COUNT)
    messages = []
    eventually(
        lambda: messages.extend(subscriber.get_many(COUNT, 0.1)) or len(messages) == COUNT,
        within=PATIENCE,
    )
    with engine.begin() as connection:
        locking = queue.__table__.select().with_only_columns(queue.__table__.c.id)
        assert len(connection.execute(locking.with_for_update(nowait=False)).all()) == COUNT
    ack(engine, *messages)


@streaming
def test_messages_that_are_too_large_for_a_stream_are_pulled(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """A tablet sends what is due at the same time together."""
    queue = make_pictures(make_queue, ack_wait=0.8, min_backoff=0.05, max_backoff=0.1)
    subscriber = subscribe(queue)
    enqueue(engine, queue())
    receive(engine, subscriber, 1)
    enqueue_large(engine, queue, deliver_at=datetime.now(UTC) + timedelta(seconds=3))
    receive(engine, subscriber, COUNT)


@pulling
def test_large_dead_messages_are_found(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_pictures(make_queue)
    enqueue_large(engine, queue)
    with Session(engine) as session, session.begin():
        table = queue.__table__
        session.execute(update(table).values(time_next=2**63 - 1))
    with Session(engine) as session:
        found = queue.dead(session, limit=COUNT)
        assert [len(message.one) for message in found] == [SIZE] * COUNT
