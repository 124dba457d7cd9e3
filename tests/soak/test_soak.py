"""Twenty workers and random failures for SOAK_MINUTES (by default 10); run by ``make soak``."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import (
    Discard,
    QueueOptions,
    Retry,
    RetryPolicy,
    Subscriber,
    Worker,
    random_id,
)
from tests.backends import all_rows, eventually, make_queue_class
from tests.servers import server_url

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
WORKERS = 20
PER_SECOND = 60
pytestmark = [pytest.mark.soak, pytest.mark.timeout(MINUTES * 60 + 300)]


def resident_megabytes() -> float:
    """Return the memory in use, without the free memory in malloc's arenas of 100 threads."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def produce(queue: type[Any], sessions: sessionmaker[Session]) -> tuple[set[int], float, int]:
    """Enqueue for the duration of the test.

    :return: the ids, the memory in megabytes half-way, and the largest number of threads.
    """
    enqueued: set[int] = set()
    started, first, most_threads = time.monotonic(), 0.0, 0
    while (elapsed := time.monotonic() - started) < MINUTES * 60:
        messages = [queue() for _ in range(10)]
        ids = [message.id for message in messages]
        with sessions.begin() as session:
            session.add_all(messages)
        enqueued.update(ids)
        most_threads = max(most_threads, threading.active_count())
        # It takes minutes until each of a hundred threads has used its stack and its heap arena.
        if not first and elapsed > MINUTES * 30:
            first = resident_megabytes()
        time.sleep(10 / PER_SECOND)
    return enqueued, first, most_threads


@pytest.fixture(autouse=True)
def _keep_no_logs() -> Iterator[None]:
    """Disable logging: pytest would keep each failed handler's traceback, and so its frames."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("server", ["vtgate", "mysql"])
def test_everything_is_settled_and_nothing_is_left(server: str) -> None:
    url = server_url(server)

    class Base(DeclarativeBase):
        pass

    options = QueueOptions(ack_wait=2, min_backoff=0.2, poller_interval=1, purge_after=3600)
    queue = make_queue_class(options, base=Base)

    class Effect(Base):
        __tablename__ = f"effect_of_{queue.__tablename__}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
        message_id: Mapped[int] = mapped_column(BigInteger)

    def handle(message: Any, session: Session) -> None:
        session.add(Effect(message_id=message.id))
        session.flush()
        chance = random.random()
        if chance < 0.05:
            raise ValueError("a bug")
        if chance < 0.08:
            raise Retry(random.random())
        if chance < 0.09:
            raise Discard("not wanted")
        if chance < 0.10:
            time.sleep(random.uniform(2, 5))  # Longer than a lease.
        elif chance < 0.12:
            # The connection is lost before the commit, without the pool's knowledge.
            session.connection().connection.driver_connection._force_close()  # type: ignore[union-attr]

    engine = create_engine(url, pool_size=60, pool_pre_ping=True)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    with sessions() as session:
        session.scalars(select(queue.id)).all()
    threads, files = threading.active_count(), open_files()
    policy = RetryPolicy(max_attempts=50, min_delay=0.05, max_delay=1)
    workers = [
        Worker(Subscriber(queue, url, max_concurrency=20), handle, sessions, concurrency=2,
               retry=policy)
        for _ in range(WORKERS)
    ]  # fmt: skip
    for worker in workers:
        worker.start()
    enqueued, first, most_threads = produce(queue, sessions)

    def stats() -> Any:
        with sessions() as session:
            return queue.stats(session)

    eventually(lambda: stats().acked + stats().dead == len(enqueued), within=120)
    last = resident_megabytes()
    for worker in workers:
        assert worker.stop()
    with sessions() as session:
        acked = {row.id for row in all_rows(session, queue.__table__) if row.time_acked}
        effects = [row.message_id for row in all_rows(session, Effect.__table__)]
    print(
        f"\n{server}: {len(enqueued)} messages in {MINUTES} min, {len(acked)} acked, "
        f"{stats().dead} dead, memory {first:.1f} -> {last:.1f} MB, {most_threads} threads"
    )
    assert len(effects) == len(set(effects))
    assert set(effects) == acked
    assert last - first < 10
    del workers, worker
    gc.collect()
    eventually(lambda: threading.active_count() <= threads)
    engine.dispose()
    assert open_files() <= files
    Base.metadata.drop_all(engine)
    engine.dispose()
