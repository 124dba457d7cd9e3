"""SQLite and MySQL, compared with other queues and with raw sqlite3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kombu
from huey import SqliteHuey
from litequeue import LiteQueue
from persistqueue import SQLiteAckQueue
from sqlalchemy import Engine, event

from benchmarks import raw, work
from benchmarks.figures import Figure, Goal, compare, scaled
from benchmarks.tables import BODY, Bench, bench
from benchmarks.work import per_second


@event.listens_for(Engine, "connect")
def _enable_write_ahead_logging(connection: Any, _record: object) -> None:
    """Configure SQLite for everything that uses SQLAlchemy as huey does by itself."""
    if type(connection).__module__ == "sqlite3":
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")


def measure_sqlite(folder: Path) -> Iterator[Figure]:
    numbers = iter(range(1_000_000))

    def path() -> Path:
        return folder / f"{next(numbers)}.db"

    def ours(do: Callable[[Bench, int], float], count: int) -> float:
        with bench(f"sqlite:///{path()}") as queue:
            return do(queue, count)

    for name, reference, goal in (
        ("huey, SqliteHuey", partial(huey_receive, path, scaled(5_000)), Goal(3)),
        ("kombu, SQLAlchemy transport",
         lambda: kombu_receive(f"sqla+sqlite:///{path()}", scaled(500)), Goal(10)),
        ("litequeue", partial(litequeue_receive, path, scaled(5_000)), None),
        ("persist-queue, SQLiteAckQueue",
         partial(persist_queue_receive, path, scaled(2_000)), None),
    ):  # fmt: skip
        yield compare(
            "SQLite: receive and ack in groups",
            partial(ours, work.drain, scaled(20_000)),
            name,
            reference,
            goal=goal,
        )
    for name, reference, goal in (
        ("huey, SqliteHuey (no ORM)", partial(huey_enqueue, path, scaled(5_000)),
         Goal(0.8, limit="the ORM")),
        ("kombu, SQLAlchemy transport",
         lambda: kombu_enqueue(f"sqla+sqlite:///{path()}", scaled(500)),
         Goal(5, limit="an ORM transaction takes 0.3 ms, SQLite 0.05 ms of it")),
        ("litequeue (no ORM)", partial(litequeue_enqueue, path, scaled(5_000)), None),
        ("persist-queue, SQLiteAckQueue (no ORM)",
         partial(persist_queue_enqueue, path, scaled(2_000)), None),
    ):  # fmt: skip
        yield compare(
            "SQLite: enqueue with the ORM, one transaction per message",
            partial(ours, work.enqueue_each, scaled(5_000)),
            name,
            reference,
            goal=goal,
        )
    yield compare(
        "SQLite: receive; effect and ack in one transaction per message",
        partial(ours, work.handle_each, scaled(5_000)),
        "sqlite3, 50 messages per lease",
        partial(ours, raw_handle_each, scaled(5_000)),
        goal=Goal(0.3, limit="an ORM transaction, 0.4 ms"),
    )
    yield compare(
        "SQLite: the same with a Connection instead of a Session",
        partial(ours, work.handle_each_by_core, scaled(5_000)),
        "sqlite3, 50 messages per lease",
        partial(ours, raw_handle_each, scaled(5_000)),
    )


def measure_mysql(url: str) -> Iterator[Figure]:
    def ours() -> float:
        with bench(url) as queue:
            return work.drain(queue, scaled(20_000))

    yield compare(
        "MySQL 8: receive and ack in groups",
        ours,
        "kombu, SQLAlchemy transport",
        lambda: kombu_receive(f"sqla+{url}", scaled(300)),
        goal=Goal(10),
    )


def drivers(url: str) -> Iterator[Figure]:
    """Compare mysqlclient, a driver in C, with PyMySQL."""
    try:
        import MySQLdb  # noqa: F401
    except ImportError:
        return

    def run_with(driver: str, do: Callable[[Bench, int], float], count: int) -> float:
        with bench(url.replace("+pymysql:", f"+{driver}:")) as queue:
            return do(queue, count)

    for name, do, count in (
        ("enqueue with the ORM, 10,000 in one transaction", work.enqueue_together, 10_000),
        ("enqueue with the ORM, one transaction per message", work.enqueue_each, 1_000),
        ("receive and ack in groups", work.drain, 20_000),
        ("receive; effect and ack in one transaction per message", work.handle_each, 2_000),
    ):
        yield compare(
            f"mysqlclient: {name}",
            partial(run_with, "mysqldb", do, scaled(count)),
            "PyMySQL",
            partial(run_with, "pymysql", do, scaled(count)),
        )


def raw_handle_each(queue: Bench, count: int) -> float:
    queue.enqueue(count)
    started = time.perf_counter()
    raw.lease_and_ack(
        str(queue.url.database), queue.table, queue.effect.__tablename__, count, at_once=50
    )
    return per_second(count, started)


def _make_huey(path: Path) -> tuple[SqliteHuey, Any]:
    huey = SqliteHuey(filename=str(path), results=False)
    return huey, huey.task()(_do_nothing)


def _do_nothing(_body: str) -> None:
    pass


def huey_enqueue(path: Callable[[], Path], count: int) -> float:
    _, task = _make_huey(path())
    started = time.perf_counter()
    for _ in range(count):
        task(BODY)
    return per_second(count, started)


def huey_receive(path: Callable[[], Path], count: int) -> float:
    huey, task = _make_huey(path())
    for _ in range(count):
        task(BODY)
    started = time.perf_counter()
    for _ in range(count):
        huey.execute(huey.dequeue())
    return per_second(count, started)


def kombu_enqueue(url: str, count: int) -> float:
    with kombu.Connection(url) as connection, connection.SimpleQueue("bench") as queue:
        started = time.perf_counter()
        for _ in range(count):
            queue.put(BODY)
        return per_second(count, started)


def kombu_receive(url: str, count: int) -> float:
    with kombu.Connection(url) as connection, connection.SimpleQueue("bench") as queue:
        queue.clear()
        for _ in range(count):
            queue.put(BODY)
        started = time.perf_counter()
        for _ in range(count):
            queue.get(block=True, timeout=10).ack()
        return per_second(count, started)


def litequeue_enqueue(path: Callable[[], Path], count: int) -> float:
    queue = LiteQueue(str(path()))
    started = time.perf_counter()
    for _ in range(count):
        queue.put(BODY)
    return per_second(count, started)


def litequeue_receive(path: Callable[[], Path], count: int) -> float:
    queue = LiteQueue(str(path()))
    for _ in range(count):
        queue.put(BODY)
    started = time.perf_counter()
    for _ in range(count):
        queue.done(queue.pop().message_id)
    return per_second(count, started)


def persist_queue_enqueue(path: Callable[[], Path], count: int) -> float:
    queue = SQLiteAckQueue(str(path()))
    started = time.perf_counter()
    for _ in range(count):
        queue.put(BODY)
    return per_second(count, started)


def persist_queue_receive(path: Callable[[], Path], count: int) -> float:
    queue = SQLiteAckQueue(str(path()))
    for _ in range(count):
        queue.put(BODY)
    started = time.perf_counter()
    for _ in range(count):
        queue.ack(queue.get())
    return per_second(count, started)
