"""Vitess, compared with raw PyMySQL and raw grpcio on the same cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from sqlalchemy import insert

from benchmarks import raw, work
from benchmarks.figures import Figure, Goal, compare, scaled
from benchmarks.tables import BODY, Bench, bench
from benchmarks.work import per_second
from sqla_vitess_messages import Grpc
from tools.vitess import Cluster


def measure(cluster: Cluster) -> Iterator[Figure]:
    url = cluster.url(gate="vtgate-fast")
    grpc = cluster.grpc("vtgate-fast")

    def on_a_new_queue(do: Callable[[Bench, int], float], count: int, **options: int) -> float:
        with bench(url, **options) as queue:
            return do(queue, count)

    count = scaled(10_000)
    yield compare(
        "enqueue with the ORM, 10,000 in one transaction",
        partial(on_a_new_queue, work.enqueue_together, count),
        "Core insert() with a list",
        partial(on_a_new_queue, core_insert, count),
        goal=Goal(0.7, limit="the ORM; see the next row"),
    )
    yield compare(
        "enqueue with the ORM, 10,000 in one transaction",
        partial(on_a_new_queue, work.enqueue_together, count),
        "the ORM, a model that isn't a queue",
        partial(on_a_new_queue, work.insert_together, count),
    )
    count = scaled(1_000)
    yield compare(
        "enqueue with the ORM, one transaction per message",
        partial(on_a_new_queue, work.enqueue_each, count),
        "PyMySQL, BEGIN, INSERT, COMMIT",
        partial(on_a_new_queue, raw_enqueue, count),
        goal=Goal(0.9, limit="the ORM; see the next row"),
    )
    yield compare(
        "enqueue with the ORM, one transaction per message",
        partial(on_a_new_queue, work.enqueue_each, count),
        "the ORM, a model that isn't a queue",
        partial(on_a_new_queue, work.insert_each, count),
    )
    busy = "client and servers share two cores"
    for batch, count in ((10, 4_000), (100, 10_000), (1000, 10_000)):
        options = {"batch_size": batch, "cache_size": 20_000}
        some = scaled(count)
        yield compare(
            f"receive ORM instances, stream, batch {batch}",
            partial(on_a_new_queue, partial(work.receive_burst, transport="stream"), some,
                    **options),
            "PyMySQL SSCursor",
            partial(on_a_new_queue, raw_receive, some, **options),
            goal=Goal(0.9, limit=busy),
        )  # fmt: skip
        yield compare(
            f"receive ORM instances, gRPC, batch {batch}",
            partial(on_a_new_queue, partial(work.receive_burst, transport=Grpc(grpc)), some,
                    **options),
            "grpcio, rows decoded to tuples",
            partial(on_a_new_queue, partial(raw_receive_grpc, address=grpc), some, **options),
            goal=Goal(0.8, limit=busy),
        )  # fmt: skip
    count = scaled(20_000)
    grouped = partial(on_a_new_queue, raw_receive_and_ack, count, cache_size=30_000)
    yield compare(
        "receive and ack in groups",
        partial(on_a_new_queue, work.drain, count),
        "PyMySQL stream, one UPDATE per 100 acks",
        grouped,
        goal=Goal(0.8),
    )
    yield compare(
        "receive and ack in groups, gRPC",
        partial(on_a_new_queue, partial(work.drain, transport=Grpc(grpc)), count),
        "PyMySQL stream, one UPDATE per 100 acks",
        grouped,
    )
    count = scaled(2_000)
    yield compare(
        "receive; effect and ack in one transaction per message",
        partial(on_a_new_queue, work.handle_each, count),
        "the same statements with PyMySQL",
        partial(on_a_new_queue, raw_handle_each, count),
        goal=Goal(0.85, limit="SQLAlchemy and PyMySQL"),
    )
    yield compare(
        "the same with a Connection instead of a Session",
        partial(on_a_new_queue, work.handle_each_by_core, count),
        "the same statements with PyMySQL",
        partial(on_a_new_queue, raw_handle_each, count),
    )
    yield compare(
        "receive and ack in groups",
        partial(on_a_new_queue, work.drain, scaled(20_000)),
        "PyMySQL stream, one UPDATE per ack",
        partial(on_a_new_queue, raw_ack_each, count),
        goal=Goal(8),
    )


def layouts(cluster: Cluster) -> Iterator[Figure]:
    """Compare the layout ``portable`` with ``minimal``."""
    url = cluster.url(gate="vtgate-fast")

    def on(layout: str, do: Callable[[Bench, int], float], count: int) -> float:
        with bench(url, layout=layout) as queue:
            return do(queue, count)

    for name, do, count in (
        ("enqueue, 10,000 in one transaction", work.enqueue_together, scaled(10_000)),
        ("enqueue, one transaction per message", work.enqueue_each, scaled(1_000)),
        ("receive and ack in groups", work.drain, scaled(10_000)),
    ):
        yield compare(
            f"portable: {name}",
            partial(on, "portable", do, count),
            "minimal",
            partial(on, "minimal", do, count),
        )


def core_insert(queue: Bench, count: int) -> float:
    started = time.perf_counter()
    with queue.engine.begin() as connection:
        connection.execute(insert(queue.model.__table__), [{"body": BODY} for _ in range(count)])
    return per_second(count, started)


def raw_enqueue(queue: Bench, count: int) -> float:
    with raw.connect(queue.url) as connection:
        started = time.perf_counter()
        for number in range(count):
            raw.enqueue_one(connection, queue.table, number)
        return per_second(count, started)


def raw_receive(queue: Bench, count: int) -> float:
    with raw.mysql_stream(queue.url, queue.table) as cursor, queue.burst(count):
        cursor.fetchone()
        started = time.perf_counter()
        for _ in range(round(count * 0.9)):
            cursor.fetchone()
        return per_second(round(count * 0.9), started)


def raw_receive_grpc(queue: Bench, count: int, address: str) -> float:
    keyspace = str(queue.url.database)
    with raw.grpc_stream(address, queue.table, keyspace) as responses, queue.burst(count):
        next(responses)
        received = first = len(next(responses))
        started = time.perf_counter()
        while received < count * 0.9:
            received += len(next(responses))
        return per_second(received - first, started)


def raw_receive_and_ack(queue: Bench, count: int, at_once: int = 100) -> float:
    queue.enqueue(count)
    with (
        raw.connect(queue.url) as acking,
        raw.mysql_stream(queue.url, queue.table) as cursor,
    ):
        started = time.perf_counter()
        for _ in range(0, count, at_once):
            ids = [row[0] for row in (cursor.fetchone() for _ in range(at_once)) if row]
            raw.ack(acking, queue.table, ids)
        return per_second(count, started)


def raw_ack_each(queue: Bench, count: int) -> float:
    return raw_receive_and_ack(queue, count, at_once=1)


def raw_handle_each(queue: Bench, count: int) -> float:
    queue.enqueue(count)
    with (
        raw.connect(queue.url) as handling,
        raw.mysql_stream(queue.url, queue.table) as cursor,
    ):
        started = time.perf_counter()
        for _ in range(count):
            row = cursor.fetchone()
            assert row
            raw.apply_and_ack(handling, queue.table, queue.effect.__tablename__, row[0])
        return per_second(count, started)
