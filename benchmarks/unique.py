"""What it costs to enqueue into a unique queue, beside the same queue without a key."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from benchmarks.figures import Figure, compare, scaled
from benchmarks.tables import Bench, bench
from benchmarks.work import per_second, receive_in_groups

TOGETHER = 10_000
EACH = 500


def measure(folder: Path, mysql: str) -> Iterator[Figure]:
    """Enqueue with each ``if_exists``, together and one by one; then receive and ack."""
    for database, url in (("SQLite", f"sqlite:///{folder}/unique.db"), ("MySQL 8", mysql)):
        with ExitStack() as stack:
            plain = stack.enter_context(bench(url))
            unique = stack.enter_context(bench(url, unique_by="body"))
            yield from _measure(database, plain, unique)


def _measure(database: str, plain: Bench, unique: Bench) -> Iterator[Figure]:
    count, each = scaled(TOGETHER), scaled(EACH)
    for if_exists, is_there in (("skip", False), ("skip", True), ("replace", True)):
        yield compare(
            f"{database}: enqueue_all with if_exists={if_exists!r}, "
            f"{'each key is there' if is_there else 'all keys are new'}",
            lambda if_exists=if_exists, is_there=is_there: _enqueue_all(
                unique, count, if_exists, is_there=is_there
            ),
            "session.add_all, no key",
            lambda: _add_all(plain, count),
        )
    for if_exists in ("skip", "replace"):
        yield compare(
            f"{database}: enqueue with if_exists={if_exists!r}, each in its own transaction",
            lambda if_exists=if_exists: _enqueue_each(unique, each, if_exists),
            "session.add, no key",
            lambda: _add_each(plain, each),
        )
    yield compare(
        f"{database}: received + acked in groups, unique queue",
        lambda: _drain(unique, count),
        "no key",
        lambda: _drain(plain, count),
    )


def _messages(queue: Bench, count: int) -> list[Any]:
    return [queue.model(body=f"{number:0100d}") for number in range(count)]


def _clear(queue: Bench, keys: Sequence[int] = ()) -> None:
    """Empty a queue, and enqueue a message for each of some keys."""
    with queue.engine.begin() as connection:
        connection.execute(queue.model.__table__.delete())
        if keys:
            connection.execute(insert(queue.model), [{"body": f"{key:0100d}"} for key in keys])


def _enqueue_all(queue: Bench, count: int, if_exists: Any, *, is_there: bool) -> float:
    _clear(queue, range(count) if is_there else ())
    started = time.perf_counter()
    with Session(queue.engine) as session, session.begin():
        queue.model.enqueue_all(session, _messages(queue, count), if_exists=if_exists)
    return per_second(count, started)


def _add_all(queue: Bench, count: int) -> float:
    _clear(queue)
    started = time.perf_counter()
    with Session(queue.engine) as session, session.begin():
        session.add_all(_messages(queue, count))
    return per_second(count, started)


def _enqueue_each(queue: Bench, count: int, if_exists: Any) -> float:
    _clear(queue, range(0, count, 2))
    started = time.perf_counter()
    for message in _messages(queue, count):
        with Session(queue.engine) as session, session.begin():
            queue.model.enqueue(session, message, if_exists=if_exists)
    return per_second(count, started)


def _add_each(queue: Bench, count: int) -> float:
    _clear(queue)
    started = time.perf_counter()
    for message in _messages(queue, count):
        with Session(queue.engine) as session, session.begin():
            session.add(message)
    return per_second(count, started)


def _drain(queue: Bench, count: int) -> float:
    _clear(queue, range(count))
    return receive_in_groups(queue, count)
