"""The work of an application with a queue, in messages per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Table, insert
from sqlalchemy.orm import DeclarativeBase, Session

from benchmarks.tables import BODY, Bench
from sqla_vitess_messages import Subscriber, random_id


def per_second(count: int, since: float) -> float:
    return count / (time.perf_counter() - since)


def enqueue_together(queue: Bench, count: int) -> float:
    """Enqueue ORM instances in one transaction."""
    started = time.perf_counter()
    with Session(queue.engine) as session, session.begin():
        session.add_all([queue.model(body=BODY) for _ in range(count)])
    return per_second(count, started)


def enqueue_each(queue: Bench, count: int) -> float:
    """Enqueue ORM instances, each in its own transaction."""
    started = time.perf_counter()
    for _ in range(count):
        with Session(queue.engine) as session, session.begin():
            session.add(queue.model(body=BODY))
    return per_second(count, started)


def _plain_model(queue: Bench) -> Callable[[], Any]:
    """Return a function that makes the same rows with a model that isn't a queue."""

    class Plain(DeclarativeBase):
        pass

    table = queue.model.__table__
    columns = [
        Column(column.name, column.type, primary_key=column.primary_key, autoincrement=False)
        for column in table.columns
    ]
    plain = type("Row", (Plain,), {"__table__": Table(table.name, Plain.metadata, *columns)})

    def make() -> Any:
        now = time.time_ns()
        return plain(id=random_id(), time_scheduled=now, time_next=now, time_created=now,
                     epoch=0, priority=50, body=BODY)  # fmt: skip

    return make


def insert_together(queue: Bench, count: int) -> float:
    """Insert as :func:`enqueue_together`, but with a plain model."""
    make = _plain_model(queue)
    started = time.perf_counter()
    with Session(queue.engine) as session, session.begin():
        session.add_all([make() for _ in range(count)])
    return per_second(count, started)


def insert_each(queue: Bench, count: int) -> float:
    """Insert as :func:`enqueue_each`, but with a plain model."""
    make = _plain_model(queue)
    started = time.perf_counter()
    for _ in range(count):
        with Session(queue.engine) as session, session.begin():
            session.add(make())
    return per_second(count, started)


def receive_burst(queue: Bench, count: int, **options: Any) -> float:
    """Receive a burst of messages on an idle stream, from the first to 90 % of them.

    A stream loses some in transit, which are redelivered after their lease.
    """
    with (
        Subscriber(queue.model, queue.bind, max_concurrency=count, **options) as subscriber,
        queue.burst(count),
    ):
        received = first = len(subscriber.get_many(count, 30))
        started = time.perf_counter()
        while received < count * 0.9:
            received += len(subscriber.get_many(count, 30))
        return per_second(received - first, started)


def drain(queue: Bench, count: int, **options: Any) -> float:
    """Enqueue so many messages, then receive them, and ack them in groups."""
    queue.enqueue(count)
    return receive_in_groups(queue, count, **options)


def receive_in_groups(queue: Bench, count: int, **options: Any) -> float:
    """Receive so many of the messages that wait, and ack them in groups."""
    with Subscriber(queue.model, queue.bind, max_concurrency=2_000, **options) as subscriber:
        started, done = time.perf_counter(), 0
        while done < count:
            messages = subscriber.get_many(min(500, count - done), 30)
            done += len([subscriber.ack(message) for message in messages])
        subscriber.flush()
        return per_second(count, started)


def handle_each(queue: Bench, count: int, **options: Any) -> float:
    """Handle a backlog, each effect and ack in their own transaction."""
    queue.enqueue(count)
    return receive_each(queue, count, max_concurrency=1_000, **options)


def receive_each(queue: Bench, count: int, **options: Any) -> float:
    """Handle so many of the messages that wait, each effect and ack in their own transaction."""
    with Subscriber(queue.model, queue.bind, **options) as subscriber:
        started = time.perf_counter()
        for _ in range(count):
            message = subscriber.get(30)
            assert message is not None
            with Session(queue.engine) as session, session.begin():
                session.add(queue.effect(id=message.id))
                message.ack(session)
        return per_second(count, started)


def handle_each_by_core(queue: Bench, count: int, **options: Any) -> float:
    """Handle a backlog as :func:`handle_each`, with a Connection instead of a Session."""
    queue.enqueue(count)
    with Subscriber(queue.model, queue.bind, max_concurrency=1_000, **options) as subscriber:
        started = time.perf_counter()
        for _ in range(count):
            message = subscriber.get(30)
            assert message is not None
            with queue.engine.begin() as connection:
                connection.execute(insert(queue.effect), {"id": message.id})
                message.ack(connection)
        return per_second(count, started)
