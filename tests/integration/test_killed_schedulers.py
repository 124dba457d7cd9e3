"""Schedulers are killed with SIGKILL at random: no tick is lost, and none is enqueued twice."""

from __future__ import annotations

import random
import secrets
import time
from datetime import datetime, timedelta
from itertools import pairwise
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, create_engine, delete, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from sqla_vitess_messages import Periodic, QueueOptions, Scheduler
from tests.backends import BACKENDS, make_queue_class
from tests.victims import Victim

SCHEDULERS = 4
ENOUGH = 120
INTERVAL = timedelta(seconds=0.5)
"""No shorter than a busy machine can keep up with: what is late when a scheduler starts is left to
the others, and is lost with them."""

pytestmark = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in ("sqlite", "mysql", "vitess")],
    indirect=True,
    ids=lambda backend: backend.name,
)


def make(name: str) -> tuple[type[Any], Periodic]:
    """Return the queue, and what is enqueued in it."""
    base = type("Base", (DeclarativeBase,), {"metadata": MetaData()})
    queue = make_queue_class(QueueOptions(), base=base, attributes={"__tablename__": name})
    return queue, Periodic(name, INTERVAL, lambda tick: queue(body=tick.isoformat()))


def schedule(url: str, name: str, scheduling: Event) -> None:
    """Schedule until killed."""
    arguments = {"timeout": 30} if url.startswith("sqlite") else {}
    _queue, periodic = make(name)
    with Scheduler(sessionmaker(create_engine(url, connect_args=arguments)), [periodic]):
        scheduling.set()
        time.sleep(600)


@pytest.mark.timeout(300)
def test_each_tick_is_enqueued_once_though_schedulers_are_killed(
    engine: Engine, url: str, ticks_table: Table
) -> None:
    name = f"killed_{secrets.token_hex(6)}"
    queue, _periodic = make(name)
    queue.__table__.create(engine)

    def enqueued() -> list[str]:
        with engine.connect() as connection:
            return sorted(connection.scalars(select(queue.body)))

    running = [Victim(schedule, url, name) for _ in range(SCHEDULERS)]
    try:
        for process in running:
            process.wait_until_at_work()
        kills = 0
        while len(enqueued()) < ENOUGH:
            time.sleep(random.uniform(0, 1))
            victim = random.randrange(SCHEDULERS)
            running[victim].kill()
            running[victim] = Victim(schedule, url, name)
            running[victim].wait_until_at_work()
            kills += 1
    finally:
        for process in running:
            process.kill()
        bodies = enqueued()
        queue.__table__.drop(engine)
        with engine.begin() as connection:
            connection.execute(delete(ticks_table).where(ticks_table.c.name == name))
    assert kills > 1
    times = [datetime.fromisoformat(body) for body in bodies]
    assert {later - earlier for earlier, later in pairwise(times)} == {INTERVAL}
