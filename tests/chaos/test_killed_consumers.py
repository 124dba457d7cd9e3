"""Consumers killed with SIGKILL at random: nothing is lost, nothing is done twice."""

from __future__ import annotations

import multiprocessing
import random
import secrets
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_vitess_messages import AlreadySettled, QueueOptions, Subscriber
from tests.backends import make_queue_class
from tests.servers import server_url

MESSAGES = 20_000
CONSUMERS = 4
SPAWN = multiprocessing.get_context("spawn")


def tables(suffix: str) -> tuple[type[Any], Table]:
    """Return the queue, and the effects: a row for each, and no key that would hide a second."""
    base = type("Base", (DeclarativeBase,), {"metadata": MetaData()})
    options = QueueOptions(ack_wait=2, min_backoff=0.5, poller_interval=0.5)
    queue = make_queue_class(options, base=base, attributes={"__tablename__": f"killed_{suffix}"})
    effects = Table(f"effects_{suffix}", base.metadata, Column("message_id", BigInteger))
    return queue, effects


def consume(url: str, suffix: str) -> None:
    """Write effects and acks together, some messages one by one and some many to a commit."""
    queue, effects = tables(suffix)
    engine = create_engine(url)

    def settle(messages: list[Any]) -> None:
        with Session(engine) as session, session.begin():
            session.execute(insert(effects), [{"message_id": message.id} for message in messages])
            queue.ack_all(session, messages)

    with Subscriber(queue, url, max_concurrency=200) as subscriber:
        while True:
            messages = subscriber.get_many(random.choice([1, 25, 50]))
            time.sleep(random.uniform(0, 0.02))  # The work.
            try:
                settle(messages)
            except AlreadySettled:
                for message in messages:
                    with suppress(AlreadySettled):
                        settle([message])


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["vtgate", "mysql"])
def test_each_effect_happens_once_though_consumers_are_killed(server: str) -> None:
    url, suffix = server_url(server), secrets.token_hex(4)
    queue, effects = tables(suffix)
    engine = create_engine(url)
    queue.metadata.create_all(engine)
    time.sleep(1)  # vtgate learns of a new table by and by.

    def start() -> BaseProcess:
        process = SPAWN.Process(target=consume, args=(url, suffix))
        process.start()
        return process

    consumers = [start() for _ in range(CONSUMERS)]
    kills, acked, deadline = 0, 0, time.monotonic() + 240
    try:
        for _ in range(MESSAGES // 2_000):
            with Session(engine) as session, session.begin():
                session.add_all([queue() for _ in range(2_000)])
        while acked < MESSAGES and time.monotonic() < deadline:
            time.sleep(random.uniform(0.3, 1))
            victim = random.randrange(CONSUMERS)
            consumers[victim].kill()
            consumers[victim].join()
            consumers[victim] = start()
            kills += 1
            with engine.connect() as connection:
                acked = queue.stats(connection).acked
        with engine.connect() as connection:
            stats = queue.stats(connection)
            total = connection.scalar(select(func.count()).select_from(effects))
            different = connection.scalar(select(func.count(effects.c.message_id.distinct())))
        assert (stats.acked, total, different) == (MESSAGES, MESSAGES, MESSAGES)
        assert kills >= CONSUMERS
    finally:
        for process in consumers:
            process.kill()
            process.join()
        queue.metadata.drop_all(engine)
        engine.dispose()
