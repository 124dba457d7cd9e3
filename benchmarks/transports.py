"""Compare the transports: latency, drain rate, excess leases, idle cost.

``python -m benchmarks.transports`` starts a cluster and prints the first table of
docs/explanation/transports.md. Producer and consumer are two processes, as in production: within
one process a commit wakes the pulling subscriber, which would make it look faster than it is.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import URL, create_engine, event, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from benchmarks import work
from benchmarks.tables import BODY, bench, make_models
from sqla_vitess_messages import Grpc, Subscriber
from tools.vitess import Cluster, temporary

RATES = {1: 15, 20: 10, 200: 10}
"""Messages per second, and the duration in seconds."""

BACKLOG = 20_000
MAX_CONCURRENCY = 100
GATES = {"default": "vtgate", "1 ms": "vtgate-fast"}


def transports(cluster: Cluster, gate: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each transport, with the subscriber's options."""
    yield "pull", {"transport": "pull"}
    yield "stream", {"transport": "stream"}
    yield "grpc", {"transport": Grpc(cluster.grpc(gate))}


def _produce(url: URL, suffix: str, rate: int, seconds: int) -> None:
    (model, _), engine = make_models(suffix), create_engine(url)
    started = time.monotonic()
    for number in range(rate * seconds):
        time.sleep(max(started + number / rate - time.monotonic(), 0))
        with Session(engine) as session, session.begin():
            session.add(model(body=BODY))


def latency(url: str, options: dict[str, Any], rate: int, seconds: int) -> str:
    """Return p50 / p99 in ms of the time from a message's creation until a handler has it."""
    # A stream loses about one message in a thousand, which is redelivered after 2 × ack_wait.
    with bench(url, ack_wait=5) as queue, Subscriber(queue.model, queue.bind, **options) as sub:
        time.sleep(1.5)
        context = multiprocessing.get_context("spawn")
        arguments = (queue.url, queue.suffix, rate, seconds)
        producer = context.Process(target=_produce, args=arguments)
        producer.start()
        found: dict[int, float] = {}
        while len(found) < rate * seconds:
            messages = sub.get_many(100, 30)
            now = time.time_ns()
            if not messages:
                raise RuntimeError(f"only {len(found)} messages arrived")
            for message in messages:
                found.setdefault(message.id, (now - message.time_created) / 1e6)
                sub.ack(message)
        producer.join()
    percentiles = statistics.quantiles(found.values(), n=100)
    return f"{percentiles[49]:,.0f} / {percentiles[98]:,.0f}"


def drain(url: str, options: dict[str, Any]) -> str:
    """Return the messages received and acked per second, with grouped acks."""
    with bench(url) as queue:
        return f"{work.drain(queue, BACKLOG, **options):,.0f}"


def excess(url: str, options: dict[str, Any]) -> str:
    """Return the largest number of leases in excess of max_concurrency, without settlements."""
    with bench(url) as queue:
        columns = queue.model.__table__.c
        leased = select(func.count()).where(columns.epoch > 0, columns.time_acked.is_(None))
        max_leased = 0
        with Subscriber(
            queue.model, queue.bind, max_concurrency=MAX_CONCURRENCY, **options
        ) as subscriber:
            time.sleep(1.5)
            queue.enqueue(10_000)
            received = []
            for _ in range(50):
                received += subscriber.get_many(MAX_CONCURRENCY, 0.1)
                with queue.engine.connect() as connection:
                    max_leased = max(max_leased, connection.scalar(leased) or 0)
    return f"{max(max_leased - MAX_CONCURRENCY, 0):,}"


def idle(url: str, options: dict[str, Any]) -> str:
    """Return the statements per second that an idle subscriber sends."""
    counted = threading.Event()
    statements = 0

    def count(*_event: object) -> None:
        nonlocal statements
        statements += counted.is_set()

    with bench(url) as queue, Subscriber(queue.model, queue.bind, **options):
        event.listen(Engine, "before_cursor_execute", count)
        time.sleep(2)
        counted.set()
        time.sleep(10)
        counted.clear()
        event.remove(Engine, "before_cursor_execute", count)
    return f"{statements / 10:.1f}"


def main() -> None:
    heads = ["transport", "vtgate", *(f"{rate}/s: p50 / p99, ms" for rate in RATES)]
    heads += ["drained /s", f"leased beyond {MAX_CONCURRENCY}", "idle, statements/s"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    with temporary(Cluster) as cluster:
        for delay, gate in GATES.items():
            url = cluster.url(gate=gate)
            for name, options in transports(cluster, gate):
                cells = [latency(url, options, rate, seconds) for rate, seconds in RATES.items()]
                cells += [drain(url, options), excess(url, options), idle(url, options)]
                print("| " + " | ".join([name, delay, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
