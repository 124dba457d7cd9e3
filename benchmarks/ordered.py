"""Ordered queues, with 100,000 messages waiting: what the order costs, and whether it grows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import BigInteger, insert, literal, select

from benchmarks.figures import QUICK, ROUNDS, Figure, Goal, scaled
from benchmarks.tables import BODY, Bench, bench
from benchmarks.work import receive_each, receive_in_groups
from sqla_vitess_messages import clock, random_id

WAITING = scaled(100_000)
MANY, SOME = WAITING, 1_000
"""Numbers of keys."""

SIZES = (10_000, 100_000) if QUICK else (10_000, 100_000, 1_000_000)
MESSAGES = scaled(10_000)
OF_GROWTH = 2_000
OF_ONE_KEY = scaled(1_000)
PER_SECOND = 200.0
"""Messages of one key that are to be handled in a second, one after the other."""

FIRST_ROWS = 5_000


def measure(folder: Path, mysql: str) -> Iterator[Figure]:
    for database, url in (("SQLite", f"sqlite:///{folder}/ordered.db"), ("MySQL 8", mysql)):
        yield from _costs(database, url)
        yield _one_key(database, url)
        yield from _growth(database, url)


def _costs(database: str, url: str) -> Iterator[Figure]:
    """Compare queues ordered by many keys, and by some, with one that isn't ordered."""
    keys: dict[int | None, list[float]] = {None: [], MANY: [], SOME: []}
    with ExitStack() as stack:
        queues = {
            count: stack.enter_context(
                bench(url, keyed=True, **({"ordered_by": "okey"} if count else {}))
            )
            for count in keys
        }
        for count, queue in queues.items():
            _fill(queue, WAITING, count or MANY)
            receive_in_groups(
                queue, MESSAGES
            )  # Until then the server is still writing the table's pages.
        for _ in range(ROUNDS):
            for count, queue in queues.items():
                keys[count].append(receive_in_groups(queue, MESSAGES))
    for count in (MANY, SOME):
        yield Figure(
            f"{database}: receive and ack in groups, ordered by {count:,} keys",
            "/s",
            "without order",
            Goal(0.4),
            keys[count],
            keys[None],
        )


def _one_key(database: str, url: str) -> Figure:
    """Handle the messages of one key, each with its ack in a transaction of its own."""
    with bench(url, keyed=True, ordered_by="okey") as queue:
        _fill(queue, WAITING, 1)
        receive_each(queue, OF_ONE_KEY // 10)
        values = [receive_each(queue, OF_ONE_KEY) for _ in range(ROUNDS)]
    required = [PER_SECOND] * len(values)
    name = f"{database}: effect and ack in one transaction per message, one key"
    goal = Goal(1, limit="five statements and two commits for a message, one after the other")
    return Figure(name, "/s", "required", goal, values, required)


def _growth(database: str, url: str) -> Iterator[Figure]:
    """Receive and ack in queues with more and more messages waiting, alternately."""
    costs: dict[int, list[float]] = {size: [] for size in SIZES}
    with ExitStack() as stack:
        queues = {
            size: stack.enter_context(bench(url, keyed=True, ordered_by="okey")) for size in SIZES
        }
        for size, queue in queues.items():
            _fill(queue, size, SOME)
            receive_in_groups(
                queue, SOME
            )  # Until then the server is still writing the table's pages.
        for _ in range(ROUNDS):
            for size, queue in queues.items():
                costs[size].append(1e6 / receive_in_groups(queue, OF_GROWTH))
    for size in SIZES[1:]:
        yield Figure(
            f"{database}: receive and ack in order while {size:,} messages wait",
            "µs per message",
            f"{SIZES[0]:,} waiting",
            Goal(1.3, at_most=True, limit="SQLite writes more pages at each COMMIT"),
            costs[size],
            costs[SIZES[0]],
        )


def _fill(queue: Bench, size: int, keys: int) -> None:
    """Fill a table with due messages, whose keys take turns."""
    columns = {column.name: column for column in queue.model.__table__.c if not column.computed}
    now, first_id = clock.now(), random_id() // 2
    first = min(FIRST_ROWS, size)
    with queue.engine.begin() as connection:
        connection.execute(
            insert(queue.model),
            [
                {"id": first_id + number, "body": BODY, "okey": number % keys, "time_next": now,
                 "time_scheduled": now, "time_created": now,
                 **({"seq": now + number} if "seq" in columns else {})}
                for number in range(first)
            ],
        )  # fmt: skip
    rows = first
    while rows < size:
        more = min(rows, size - rows)
        step = literal(rows, BigInteger)
        changed = {
            "id": columns["id"] + step,
            "okey": (columns["okey"] + step) % keys,
            **({"seq": columns["seq"] + step} if "seq" in columns else {}),
        }
        filled = select(*(changed.get(name, column) for name, column in columns.items())).where(
            columns["id"] < first_id + more
        )
        with queue.engine.begin() as connection:
            connection.execute(insert(queue.model).from_select(list(columns.values()), filled))
        rows += more
