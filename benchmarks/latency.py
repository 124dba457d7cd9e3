"""The time from a message's creation until a handler has it, with producer and consumer in two
processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session

from benchmarks import raw
from benchmarks.figures import ROUNDS, Figure, Goal, compare, scaled
from benchmarks.tables import BODY, Bench, bench, make_models
from sqla_vitess_messages import Grpc, Subscriber
from sqla_vitess_messages.table.options import queue_options
from tools.vitess import Cluster

RATES = {1: scaled(10), 20: scaled(100), 200: scaled(1_000)}
"""Messages per second, and the number of messages."""


def measure(cluster: Cluster) -> Iterator[Figure]:
    """Measure with the default flags of vtgate."""
    for rate in RATES:
        theirs: Callable[[], float] = partial(
            _median, cluster.url(), rate, partial(_receive_raw, address=cluster.grpc())
        )
        for name, options, rounds, limit in (
            ("gRPC", {"transport": Grpc(cluster.grpc())}, ROUNDS, "the ORM instance, 0.2 ms"),
            ('transport="auto" without a gRPC address', {}, 1, "half of a poll interval"),
        ):
            yield compare(
                f"latency at {rate} message{'s' * (rate > 1)}/s, {name}",
                partial(_median, cluster.url(), rate, partial(_receive, options=options)),
                "grpcio stream",
                theirs,
                unit="ms, p50",
                goal=Goal(1.2, at_most=True, limit=limit),
                rounds=rounds,
            )


IDLE_SHARE = 2.0
"""Percent of a core that an idle subscriber may use."""


def measure_sqlite(folder: Path) -> Iterator[Figure]:
    """Measure on a file, with the defaults."""
    url = f"sqlite:///{folder}/latency.db"
    yield compare(
        "SQLite: latency at 20 messages/s",
        partial(_median, url, 20, partial(_receive, options={})),
        "sqlite3, a SELECT every millisecond",
        partial(_median, url, 20, _receive_by_sqlite3),
        unit="ms, p50",
        goal=Goal(2, at_most=True, limit="the lease, and the ORM on both sides"),
    )
    shares = [_idle(url) for _ in range(ROUNDS)]
    yield Figure(
        "SQLite: an idle subscriber", "% of a core", "allowed",
        Goal(1, at_most=True, limit="a thread that wakes up takes 60 to 130 µs of CPU time"),
        shares, [IDLE_SHARE] * len(shares),
    )  # fmt: skip


def _idle(url: str) -> float:
    """Return which share of a core this process uses while nothing is enqueued."""
    with bench(url) as queue, Subscriber(queue.model, queue.bind):
        time.sleep(2)  # Soon after a commit it checks more often.
        cpu, started = time.process_time(), time.monotonic()
        time.sleep(10)
        return 100 * (time.process_time() - cpu) / (time.monotonic() - started)


def _median(
    url: str, rate: int, receive: Callable[[Bench, int, Callable[[], None]], list[float]]
) -> float:
    with bench(url, ack_wait=60) as queue:
        context = multiprocessing.get_context("spawn")
        producer = context.Process(target=_produce, args=(queue.url, queue.suffix, rate))
        latencies = receive(queue, RATES[rate], producer.start)
        producer.join()
    return statistics.median(latencies)


def _produce(url: URL, suffix: str, rate: int) -> None:
    model, _ = make_models(suffix)
    engine = create_engine(url)
    engine.connect().close()
    started = time.monotonic()
    for number in range(RATES[rate]):
        time.sleep(max(started + number / rate - time.monotonic(), 0))
        with Session(engine) as session, session.begin():
            session.add(model(body=BODY))


def _receive(
    queue: Bench, count: int, begin: Callable[[], None], options: dict[str, Any]
) -> list[float]:
    """Receive without acks, like the reference: only the time until the handler counts."""
    with Subscriber(queue.model, queue.bind, max_concurrency=count, **options) as subscriber:
        time.sleep(1)
        begin()
        found: dict[int, float] = {}
        while len(found) < count:
            messages = subscriber.get_many(100, 30)
            now = time.time_ns()
            for message in messages:
                found.setdefault(message.id, (now - message.time_created) / 1e6)
        return list(found.values())


def _receive_raw(queue: Bench, count: int, begin: Callable[[], None], address: str) -> list[float]:
    names = queue_options(queue.model.__table__).message_cols or ()
    created = names.index("time_created")
    with raw.grpc_stream(address, queue.table, str(queue.url.database)) as responses:
        next(responses)
        begin()
        latencies: list[float] = []
        while len(latencies) < count:
            rows = next(responses)
            now = time.time_ns()
            latencies += [(now - row[created]) / 1e6 for row in rows]
        return latencies


def _receive_by_sqlite3(queue: Bench, count: int, begin: Callable[[], None]) -> list[float]:
    latencies: list[float] = []
    last = 0
    with closing(sqlite3.connect(str(queue.url.database))) as connection:
        begin()
        while len(latencies) < count:
            time.sleep(0.001)
            new = f"SELECT rowid, time_created FROM {queue.table} WHERE rowid > ?"
            rows = connection.execute(new, [last]).fetchall()
            now = time.time_ns()
            latencies += [(now - created) / 1e6 for _row, created in rows]
            last = max([last, *(row for row, _created in rows)])
    return latencies
