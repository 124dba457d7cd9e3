"""The capacity of one shard, from which docs/explanation/scale.md computes that of many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count as counting
from typing import Any

import grpc
import pymysql
from sqlalchemy import func, insert, select

from benchmarks import raw
from benchmarks.figures import Figure, compare, scaled
from benchmarks.tables import BODY, Bench, bench
from benchmarks.work import per_second
from sqla_vitess_messages import clock
from tools.vitess import Cluster

CLIENTS = 16
SUBSCRIBERS = 4
"""The batches that a tablet postpones concurrently (--queryserver-config-message-postpone-cap)."""


def measure(cluster: Cluster) -> Iterator[Figure]:
    url = cluster.url(gate="vtgate-fast")
    address = cluster.grpc("vtgate-fast")

    def on_a_new_queue(do: Callable[..., float], **options: Any) -> float:
        with bench(url, **options) as queue:
            return do(queue)

    for name, do, number in (
        ("enqueue, one transaction per message", enqueue_each, scaled(4_000)),
        ("effect and ack in one transaction per message", settle_each, scaled(4_000)),
    ):
        yield compare(
            f"one shard: {name}, {CLIENTS} clients",
            partial(on_a_new_queue, partial(do, count=number, clients=CLIENTS)),
            "1 client",
            partial(on_a_new_queue, partial(do, count=number // 4, clients=1)),
        )
    for batch in (10, 100):
        streaming = partial(stream, address=address, count=scaled(20_000))
        options = {"batch_size": batch, "cache_size": 30_000}
        yield compare(
            f"one shard: stream, batch {batch}, {SUBSCRIBERS} subscribers",
            partial(on_a_new_queue, partial(streaming, subscribers=SUBSCRIBERS), **options),
            "1 subscriber",
            partial(on_a_new_queue, partial(streaming, subscribers=1), **options),
        )
    number = scaled(10_000)  # Vitess refuses to return more rows.
    yield compare(
        "one shard: purge by the tablet",
        partial(on_a_new_queue, partial(purge, count=number), purge_after=1, poller_interval=1),
        "ack, one UPDATE per 100 messages",
        partial(on_a_new_queue, partial(ack, count=number)),
    )


def _in_threads(
    clients: int, do: Callable[[pymysql.Connection[Any]], object], queue: Bench
) -> None:
    """Call ``do`` in threads, each with its own connection."""

    def work() -> None:
        with raw.connect(queue.url) as connection:
            do(connection)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def enqueue_each(queue: Bench, count: int, clients: int) -> float:
    numbers = counting()

    def enqueue(connection: pymysql.Connection[Any]) -> None:
        while (number := next(numbers)) < count:
            raw.enqueue_one(connection, queue.table, number)

    started = time.perf_counter()
    _in_threads(clients, enqueue, queue)
    return per_second(count, started)


def settle_each(queue: Bench, count: int, clients: int) -> float:
    queue.enqueue(count)
    with queue.engine.connect() as connection:
        ids = iter(connection.scalars(select(queue.model.id)).all())
    effects = queue.effect.__tablename__

    def settle(connection: pymysql.Connection[Any]) -> None:
        for message_id in ids:
            raw.apply_and_ack(connection, queue.table, effects, message_id)

    started = time.perf_counter()
    _in_threads(clients, settle, queue)
    return per_second(count, started)


def stream(queue: Bench, address: str, count: int, subscribers: int) -> float:
    """Drain a backlog over raw gRPC streams, without acks."""
    queue.enqueue(count)
    enough = round(count * 0.95)
    received = [0] * subscribers
    done = threading.Event()

    def receive(number: int, responses: Iterator[list[Any]]) -> None:
        with suppress(grpc.RpcError):  # The stream is cancelled when enough messages have arrived.
            for rows in responses:
                received[number] += len(rows)
                if sum(received) >= enough:
                    done.set()

    with ExitStack() as streams:
        opened = [
            streams.enter_context(raw.grpc_stream(address, queue.table, str(queue.url.database)))
            for _ in range(subscribers)
        ]
        started = time.perf_counter()
        for number, responses in enumerate(opened):
            threading.Thread(target=receive, args=(number, responses), daemon=True).start()
        done.wait(60)
        return per_second(sum(received), started)


def ack(queue: Bench, count: int) -> float:
    queue.enqueue(count)
    with queue.engine.connect() as connection:
        ids = list(connection.scalars(select(queue.model.id)))
    with raw.connect(queue.url) as acking:
        started = time.perf_counter()
        for first in range(0, count, 100):
            raw.ack(acking, queue.table, ids[first : first + 100])
        return per_second(count, started)


def purge(queue: Bench, count: int) -> float:
    """Measure the tablet's purge of messages acked long ago, from its first statement on."""
    acked = {"body": BODY, "time_acked": clock.now() - 3600 * 10**9, "time_next": None}
    counted = select(func.count()).select_from(queue.model)
    with queue.engine.connect() as connection:
        with connection.begin():
            for first in range(0, count, 5_000):
                some = min(5_000, count - first)
                connection.execute(insert(queue.model.__table__), [acked] * some)
        left = before = connection.scalar(counted) or 0
        started = time.perf_counter()
        while left:
            connection.rollback()
            left = connection.scalar(counted) or 0
            if left == before:
                started = time.perf_counter()
        return per_second(count, started)
