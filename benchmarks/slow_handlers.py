"""Two subscribers with slow handlers and a backlog: leases, redeliveries, fairness, rate.

``python -m benchmarks.slow_handlers`` starts a cluster and prints the second table of
docs/explanation/transports.md. Each subscriber has ``max_concurrency=50`` and 25 handlers, each of
which takes 20 ms and then acks in its own transaction.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from benchmarks.tables import bench
from benchmarks.transports import transports
from sqla_vitess_messages import Subscriber, clock
from tools.vitess import Cluster, temporary

MESSAGES, MAX_CONCURRENCY, HANDLERS, WORK = 20_000, 50, 25, 0.02

SECONDS = 40
"""The duration for each transport."""


def handle(subscriber: Subscriber[Any], engine: Engine, epochs: list[int], end: float) -> None:
    """Settle messages until none arrives for a second, or the time is over."""
    while time.monotonic() < end and (message := subscriber.get(1)) is not None:
        time.sleep(WORK)
        with Session(engine) as session, session.begin():
            message.ack(session)
        epochs.append(message.epoch)


def measure(url: str, options: dict[str, Any]) -> list[str]:
    """Return the cells of one row."""
    epochs: list[list[int]] = [[], []]
    max_leased = 0
    with bench(url, ack_wait=30) as queue, ExitStack() as stack:
        queue.enqueue(MESSAGES)
        engine = create_engine(url, pool_size=2 * HANDLERS + 1)
        columns = queue.model.__table__.c
        leased = select(func.count()).where(
            columns.epoch > 0,
            columns.time_acked.is_(None),
            columns.time_next > clock.database_now(),
        )
        subscribers = [
            stack.enter_context(
                Subscriber(queue.model, queue.bind, max_concurrency=MAX_CONCURRENCY, **options)
            )
            for _ in epochs
        ]
        started = time.monotonic()
        threads = [
            threading.Thread(target=handle, args=(subscriber, engine, seen, started + SECONDS))
            for subscriber, seen in zip(subscribers, epochs, strict=True)
            for _ in range(HANDLERS)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with engine.connect() as connection:
                max_leased = max(max_leased, connection.scalar(leased) or 0)
            time.sleep(0.05)
        duration = time.monotonic() - started
        engine.dispose()
    done = len(epochs[0]) + len(epochs[1])
    redelivered = sum(epoch > 0 for seen in epochs for epoch in seen)
    share = min(map(len, epochs)) / max(done, 1)
    return [
        str(max_leased),
        f"{redelivered / done:.2%}",
        f"{share:.0%}",
        f"{done / duration:,.0f}",
        f"{done:,}",
    ]


def main() -> None:
    print("| transport | most leased | redelivered | smaller share | settled /s | settled |")
    print("|---|---|---|---|---|---|")
    with temporary(Cluster) as cluster:
        for name, options in transports(cluster, "vtgate"):
            cells = measure(cluster.url(), options)
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
