"""Consumers are killed with SIGKILL at random: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import random
import secrets
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_vitess_messages import AlreadySettled, QueueOptions, Subscriber
from tests.backends import eventually, make_queue_class
from tests.servers import server_url
from tests.victims import Victim

MESSAGES = 20_000
AT_ONCE = 2_000
CONSUMERS = 4


def tables(suffix: str) -> tuple[type[Any], Table]:
    """Return the queue and the table of effects, which has no key that would hide a second one."""
    base = type("Base", (DeclarativeBase,), {"metadata": MetaData()})
    options = QueueOptions(ack_wait=2, min_backoff=0.5, poller_interval=0.5)
    queue = make_queue_class(options, base=base, attributes={"__tablename__": f"killed_{suffix}"})
    effects = Table(f"effects_{suffix}", base.metadata, Column("message_id", BigInteger))
    return queue, effects


def consume(url: str, suffix: str, receiving: Event) -> None:
    """Commit effects and acks together, for some messages one by one, and for others in batches."""
    queue, effects = tables(suffix)
    engine = create_engine(url)

    def settle(messages: list[Any]) -> None:
        with Session(engine) as session, session.begin():
            session.execute(insert(effects), [{"message_id": message.id} for message in messages])
            queue.ack_all(session, messages)

    with Subscriber(queue, url, max_concurrency=200) as subscriber:
        receiving.set()
        while True:
            messages = subscriber.get_many(random.choice([1, 25, 50]))
            time.sleep(random.uniform(0, 0.02))  # The handler's work.
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
    time.sleep(1)  # vtgate learns of a new table asynchronously.
    consumers = [Victim(consume, url, suffix) for _ in range(CONSUMERS)]

    def acked() -> int:
        with engine.connect() as connection:
            return queue.stats(connection).acked

    try:
        for _ in range(MESSAGES // AT_ONCE):
            victim = random.randrange(CONSUMERS)
            consumers[victim].wait_until_at_work()
            with Session(engine) as session, session.begin():
                session.add_all([queue() for _ in range(AT_ONCE)])
            time.sleep(random.uniform(0, 0.5))
            consumers[victim].kill()
            consumers[victim] = Victim(consume, url, suffix)
        eventually(lambda: acked() == MESSAGES, within=200)
        with engine.connect() as connection:
            total = connection.scalar(select(func.count()).select_from(effects))
            different = connection.scalar(select(func.count(effects.c.message_id.distinct())))
        assert (total, different) == (MESSAGES, MESSAGES)
    finally:
        for consumer in consumers:
            consumer.kill()
        queue.metadata.drop_all(engine)
        engine.dispose()
