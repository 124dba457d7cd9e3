"""Compare the transports on a running database: latency, drain rate, excess leases, idle cost.

.. code-block:: sh

    python -m tools.vitess start cluster      # prints the URLs
    python -m benchmarks.transports pull=URL stream=URL

Prints the table of docs/explanation/transports.md. Producer and consumer are two processes, as
in production: within one process a commit wakes a pull, which would flatter it.
"""

from __future__ import annotations

import multiprocessing
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import Engine, String, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import MessageQueueMixin, QueueOptions, Subscriber
from sqla_vitess_messages.transports import TransportName

RATES = {1: 20, 20: 10, 200: 10}
"""Messages a second, and for how many seconds."""

BACKLOG = 20_000
HELD = 100


def _queue(suffix: str, ack_wait: float = 60) -> type[Any]:
    base = type("Base", (DeclarativeBase,), {})
    body = {
        "__tablename__": f"bench_{suffix}",
        "__queue__": QueueOptions(ack_wait=ack_wait),
        "__annotations__": {"body": Mapped[str]},
        "body": mapped_column(String(255)),
        "__module__": __name__,
    }
    return type("Message", (MessageQueueMixin, base), body)


@contextmanager
def table(url: str, ack_wait: float = 60) -> Iterator[tuple[Engine, type[Any], str]]:
    suffix = secrets.token_hex(4)
    model, engine = _queue(suffix, ack_wait), create_engine(url)
    model.metadata.create_all(engine)
    time.sleep(1)  # vtgate learns of a new table by and by.
    try:
        yield engine, model, suffix
    finally:
        model.metadata.drop_all(engine)
        engine.dispose()


def _produce(url: str, suffix: str, rate: int, seconds: int) -> None:
    model, engine = _queue(suffix), create_engine(url)
    started = time.monotonic()
    for number in range(rate * seconds):
        time.sleep(max(started + number / rate - time.monotonic(), 0))
        with Session(engine) as session, session.begin():
            session.add(model(body="x" * 100))


def latency(url: str, transport: TransportName, rate: int, seconds: int) -> str:
    """Return p50 / p99 in ms from a message's creation until a handler has it."""
    # A stream loses one in a thousand or so, which comes back after twice ack_wait.
    with table(url, 5) as (_, model, suffix), Subscriber(model, url, transport=transport) as sub:
        time.sleep(1.5)
        context = multiprocessing.get_context("spawn")
        producer = context.Process(target=_produce, args=(url, suffix, rate, seconds))
        producer.start()
        found: dict[int, float] = {}
        while len(found) < rate * seconds:
            messages = sub.get_many(100, 30)
            now = time.time_ns()
            if not messages:
                raise RuntimeError(f"{transport}: only {len(found)} messages came")
            for message in messages:
                found.setdefault(message.id, (now - message.time_created) / 1e6)
                sub.ack(message)
        producer.join()
    percentiles = statistics.quantiles(found.values(), n=100)
    return f"{percentiles[49]:,.0f} / {percentiles[98]:,.0f}"


def enqueue(engine: Engine, model: type[Any], count: int) -> None:
    for _ in range(0, count, 5000):
        with Session(engine) as session, session.begin():
            session.add_all([model(body="x" * 100) for _ in range(min(count, 5000))])


def drain(url: str, transport: TransportName) -> str:
    """Return received and acked messages a second, the acks grouped."""
    with table(url) as (engine, model, _):
        enqueue(engine, model, BACKLOG)
        with Subscriber(model, url, max_concurrency=1000, transport=transport) as subscriber:
            started, done = time.monotonic(), 0
            while done < BACKLOG:
                messages = subscriber.get_many(100, 30)
                done += len([subscriber.ack(message) for message in messages])
            subscriber.flush()
            return f"{done / (time.monotonic() - started):,.0f}"


def excess(url: str, transport: TransportName) -> str:
    """Return the most leases that the table has beyond max_concurrency, nothing being settled."""
    with table(url) as (engine, model, _):
        columns = model.__table__.c
        leased = select(func.count()).where(columns.epoch > 0, columns.time_acked.is_(None))
        most = 0
        with Subscriber(model, url, max_concurrency=HELD, transport=transport) as subscriber:
            time.sleep(1.5)
            enqueue(engine, model, 10_000)
            held = []
            for _ in range(50):
                held += subscriber.get_many(HELD, 0.1)
                with engine.connect() as connection:
                    most = max(most, connection.scalar(leased) or 0)
    return f"{max(most - HELD, 0):,}"


def idle(url: str, transport: TransportName) -> str:
    """Return statements a second sent by a subscriber that has nothing to do."""
    counted = threading.Event()
    statements = 0

    def count(*_event: object) -> None:
        nonlocal statements
        statements += counted.is_set()

    with table(url) as (_, model, _), Subscriber(model, url, transport=transport):
        event.listen(Engine, "before_cursor_execute", count)
        time.sleep(2)
        counted.set()
        time.sleep(10)
        counted.clear()
        event.remove(Engine, "before_cursor_execute", count)
    return f"{statements / 10:.1f}"


def main() -> None:
    heads = [f"{rate}/s: p50 / p99, ms" for rate in RATES]
    heads += ["drained /s", f"leased beyond {HELD}", "idle, statements/s"]
    print("| transport | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for argument in sys.argv[1:]:
        name, _, url = argument.partition("=")
        transport = cast("TransportName", name.rstrip("0123456789"))
        cells = [latency(url, transport, rate, seconds) for rate, seconds in RATES.items()]
        cells += [drain(url, transport), excess(url, transport), idle(url, transport)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
