"""The time per message in tables of 10,000, 100,000 and 1,000,000 rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import BigInteger, insert, literal, select

from benchmarks import work
from benchmarks.figures import QUICK, ROUNDS, Figure, Goal, scaled
from benchmarks.tables import BODY, Bench, bench
from sqla_vitess_messages import clock

SIZES = (10_000, 100_000) if QUICK else (10_000, 100_000, 1_000_000)
MESSAGES = 4_000

STEP = 10**12
"""The distance between the ids of one doubling and the next."""


def measure(folder: Path, mysql: str) -> Iterator[Figure]:
    """Enqueue, receive and ack in three filled tables alternately."""
    for database, url in (("SQLite", f"sqlite:///{folder}/growth.db"), ("MySQL 8", mysql)):
        costs: dict[int, list[float]] = {size: [] for size in SIZES}
        with ExitStack() as stack:
            queues = {size: stack.enter_context(bench(url, purge_after=86_400)) for size in SIZES}
            for size, queue in queues.items():
                _grow(queue, size)
                _cost(queue)  # Until then the server is still writing the table's pages.
            for _ in range(ROUNDS):
                for size, queue in queues.items():
                    costs[size].append(_cost(queue))
        for size in SIZES[1:]:
            yield Figure(
                f"{database}: enqueue, receive and ack in a table of {size:,} rows",
                "µs per message",
                f"{SIZES[0]:,} rows",
                Goal(1.3, at_most=True),
                costs[size],
                costs[SIZES[0]],
            )


def _cost(queue: Bench) -> float:
    """Return microseconds per message."""
    count = scaled(MESSAGES)
    started = time.perf_counter()
    work.drain(queue, count)
    return (time.perf_counter() - started) / count * 1e6


def _grow(queue: Bench, size: int) -> None:
    """Fill the table: half of the rows are acked, the others are scheduled for later."""
    columns = queue.model.__table__.c
    now, later = clock.now(), clock.now() + 10**9 * 86_400
    with queue.engine.begin() as connection:
        connection.execute(
            insert(queue.model),
            [
                {"id": number, "body": BODY, "time_created": now, "time_scheduled": now,
                 "time_acked": now if number % 2 else None,
                 "time_next": None if number % 2 else later + number}
                for number in range(1, 5_001)
            ],
        )  # fmt: skip
    rows = 5_000
    while rows < size:
        step = literal(STEP + rows, BigInteger)
        more = min(rows, size - rows)
        filled = select(
            *(column + step if column.name == "id" else column for column in columns)
        ).where(columns.id < STEP * 10**6)  # fmt: skip
        with queue.engine.begin() as connection:
            connection.execute(insert(queue.model).from_select(list(columns), filled.limit(more)))
        rows += more
