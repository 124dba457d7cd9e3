"""Consumers of an ordered queue that are killed with SIGKILL at random, and a check of the effects.

Each effect is committed together with its message's ack, and with the progress of its key. It
records how far its key was before. So an effect that is missing, doubled or out of order shows.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.synchronize import Event
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from sqla_vitess_messages import AlreadySettled, QueueOptions, Subscriber, random_id
from sqla_vitess_messages.vitess.vschema import AddVindex, alter_vschema, wait_until_routable
from tests.backends import eventually, make_queue_class
from tests.servers import server_url
from tests.victims import Victim

__all__ = ["check_order_with_killed_consumers"]

CONSUMERS = 4


class Tables:
    """The ordered queue, the effects of its messages, and how far each key is."""

    def __init__(self, suffix: str, *, sharded: bool) -> None:
        base = type("Base", (DeclarativeBase,), {"metadata": MetaData()})
        sharding: dict[str, Any] = {"shard_by": "tenant", "vindex": "hash"} if sharded else {}
        self.queue = make_queue_class(
            QueueOptions(
                ack_wait=2, min_backoff=0.5, poller_interval=0.5, ordered_by="tenant", **sharding
            ),
            base=base,
            attributes={
                "__tablename__": f"ordered_{suffix}",
                "tenant": mapped_column(BigInteger, nullable=False),
                "number": mapped_column(Integer, nullable=False),
            },
        )
        self.metadata = base.metadata
        self.effects = Table(
            f"effects_{suffix}",
            self.metadata,
            Column("id", BigInteger, primary_key=True, autoincrement=False),
            Column("tenant", BigInteger, nullable=False),
            Column("number", Integer, nullable=False),
            Column("previous", Integer, nullable=False),
        )
        self.progress = Table(
            f"progress_{suffix}",
            self.metadata,
            Column("tenant", BigInteger, primary_key=True, autoincrement=False),
            Column("number", Integer, nullable=False),
        )

    def create(self, engine: Engine, *, sharded: bool) -> None:
        self.metadata.create_all(engine)
        if sharded:
            with engine.connect() as connection:
                for table in (self.effects, self.progress):
                    alter_vschema(connection, AddVindex(table.name, ["tenant"], "hash"))
                    wait_until_routable(connection, table)

    def handle(self, session: Session, messages: list[Any]) -> None:
        """Have the effects of messages, and ack them."""
        tenants = [message.tenant for message in messages]
        assert len(set(tenants)) == len(tenants)
        progress = self.progress.c
        reading = select(progress.tenant, progress.number).where(progress.tenant.in_(tenants))
        before = dict(session.execute(reading.with_for_update()).tuples().all())
        session.execute(
            insert(self.effects),
            [
                {
                    "id": random_id(),
                    "tenant": message.tenant,
                    "number": message.number,
                    "previous": before[message.tenant],
                }
                for message in messages
            ],
        )
        advancing = update(self.progress).where(progress.tenant.in_(tenants))
        session.execute(advancing.values(number=progress.number + 1))
        self.queue.ack_all(session, messages)


def consume(url: str, suffix: str, sharded: bool, receiving: Event) -> None:
    """Handle messages until killed, some one by one, and others in batches."""
    tables = Tables(suffix, sharded=sharded)
    engine = create_engine(url)

    def handle(messages: list[Any]) -> None:
        with Session(engine) as session, session.begin():
            tables.handle(session, messages)

    with Subscriber(tables.queue, url, max_concurrency=100) as subscriber:
        receiving.set()
        while True:
            messages = subscriber.get_many(random.choice([1, 25, 50]))
            time.sleep(random.uniform(0, 0.02))  # The handler's work.
            try:
                handle(messages)
            except (AlreadySettled, DBAPIError):
                for message in messages:
                    with suppress(AlreadySettled, DBAPIError):  # Then it comes again.
                        handle([message])


def _rows(engine: Engine, table: Table) -> Iterator[Any]:
    """Read a whole table in chunks, because Vitess refuses to send more than 10,000 rows."""
    last = 0
    with engine.connect() as connection:
        while rows := connection.execute(
            select(table).where(table.c.id > last).order_by(table.c.id).limit(5000)
        ).all():
            yield from rows
            last = rows[-1].id


def check_order_with_killed_consumers(
    server: str, *, messages: int, keys: int, kills: int, within: float
) -> None:
    """Enqueue messages while consumers are killed, and check the effects of every key.

    :param within: seconds until all are handled, after the last kill.
    """
    url, suffix, sharded = server_url(server), secrets.token_hex(4), server == "sharded"
    tables = Tables(suffix, sharded=sharded)
    engine = create_engine(url)
    tables.create(engine, sharded=sharded)
    time.sleep(1)  # vtgate learns of a new table asynchronously.
    consumers = [Victim(consume, url, suffix, sharded) for _ in range(CONSUMERS)]
    each, at_once = messages // keys, messages // keys // kills

    def acked() -> int:
        with engine.connect() as connection:
            return tables.queue.stats(connection).acked

    try:
        with engine.begin() as connection:
            starts = [{"tenant": key, "number": 0} for key in range(keys)]
            connection.execute(insert(tables.progress), starts)
        for first in range(1, each + 1, at_once):
            with Session(engine) as session, session.begin():
                session.add_all(
                    tables.queue(tenant=key, number=number)
                    for number in range(first, min(first + at_once, each + 1))
                    for key in range(keys)
                )
            victim = random.randrange(CONSUMERS)
            consumers[victim].wait_until_at_work(within=120)
            time.sleep(random.uniform(0, 1))
            consumers[victim].kill()
            consumers[victim] = Victim(consume, url, suffix, sharded)
        eventually(lambda: acked() == each * keys, within=within)
        effects: dict[int, dict[int, int]] = defaultdict(dict)
        count = 0
        for effect in _rows(engine, tables.effects):
            effects[effect.tenant][effect.number] = effect.previous
            count += 1
        assert count == each * keys
        in_order = {number: number - 1 for number in range(1, each + 1)}
        assert {key: effects[key] for key in range(keys)} == dict.fromkeys(range(keys), in_order)
    finally:
        for consumer in consumers:
            consumer.kill()
        tables.metadata.drop_all(engine)
        engine.dispose()
