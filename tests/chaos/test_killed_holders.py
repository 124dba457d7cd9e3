"""Holders are killed with SIGKILL while their messages are replaced: each last payload counts."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    MetaData,
    Table,
    create_engine,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from sqla_vitess_messages import AlreadySettled, QueueOptions, Subscriber, random_id
from sqla_vitess_messages.rows.transient import is_transient
from sqla_vitess_messages.vitess.vschema import AddVindex, alter_vschema, wait_until_routable
from tests.backends import eventually, make_queue_class
from tests.servers import server_url
from tests.victims import Victim

KEYS = 60
TENANTS = 7
PRODUCERS = 3
CONSUMERS = 4
KILLS = 8


def tables(suffix: str, *, sharded: bool) -> tuple[type[Any], Table]:
    """Return the queue and the table of effects, whose key hides no second one."""
    base = type("Base", (DeclarativeBase,), {"metadata": MetaData()})
    options: dict[str, Any] = {"shard_by": "tenant", "vindex": "hash"} if sharded else {}
    queue = make_queue_class(
        QueueOptions(
            ack_wait=1,
            min_backoff=0.2,
            poller_interval=0.5,
            unique_by=("tenant", "key"),
            **options,
        ),
        base=base,
        attributes={
            "__tablename__": f"holders_{suffix}",
            "tenant": mapped_column("tenant", BigInteger, nullable=False),
            "key": mapped_column("key", BigInteger, nullable=False),
        },
    )
    number = Column("number", BigInteger, primary_key=True, autoincrement=False, default=random_id)
    columns = [Column(name, BigInteger) for name in ("tenant", "key", "version")]
    return queue, Table(f"replaced_effects_{suffix}", base.metadata, number, *columns)


def create_tables(engine: Engine, queue: type[Any], effects: Table, *, sharded: bool) -> None:
    queue.metadata.create_all(engine)
    if sharded:
        with engine.connect() as connection:
            alter_vschema(connection, AddVindex(effects.name, ["tenant"], "hash"))
            wait_until_routable(connection, effects)
    time.sleep(1)  # vtgate learns of a new table asynchronously.


def consume(url: str, suffix: str, sharded: bool, receiving: Event) -> None:
    """Commit effects and acks together, until killed."""
    queue, effects = tables(suffix, sharded=sharded)
    engine = create_engine(url)

    def settle(message: Any) -> None:
        with Session(engine) as session, session.begin():
            effect = {"tenant": message.tenant, "key": message.key, "version": int(message.body)}
            session.execute(insert(effects).values(effect))
            message.ack(session)

    with Subscriber(queue, url, max_concurrency=10) as subscriber:
        receiving.set()
        while True:
            message = subscriber.get()
            time.sleep(random.choice([0, 0.01, 0.2, 1.5]))  # The last one is longer than its lease.
            try:
                persist(lambda message=message: settle(message))
            except AlreadySettled:
                continue


def persist(transaction: Callable[[], None]) -> None:
    """Repeat a transaction as often as deadlocks need: the table is small, and its keys are few."""
    for _ in range(50):
        try:
            transaction()
        except DBAPIError as error:
            if not is_transient(error):
                raise
            time.sleep(random.uniform(0, 0.05))
        else:
            return
    raise AssertionError("a deadlock each time")


class Producer(threading.Thread):
    """Replaces the messages of its own keys, and notes the last version of each."""

    def __init__(self, engine: Engine, queue: type[Any], number: int) -> None:
        super().__init__()
        self.engine, self.queue = engine, queue
        self.keys = range(number, KEYS, PRODUCERS)
        self.last: dict[int, int] = {}
        self.committed: set[tuple[int, int, int]] = set()
        self.stopped = threading.Event()
        self.failure: BaseException | None = None
        self._version = 0

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                first = random.choice(self.keys)
                # Of one shard: a deadlock across shards ends by a timeout of 30 s.
                keys = [key for key in self.keys if key % TENANTS == first % TENANTS]
                persist(lambda keys=keys: self.produce(keys))
                time.sleep(random.uniform(0, 0.05))
        except BaseException as error:
            self.failure = error
            raise

    def produce(self, keys: list[int]) -> None:
        self._version += 1
        messages = [
            self.queue(tenant=key % TENANTS, key=key, body=str(self._version), deliver_in=delay)
            for key in keys
            for delay in [random.choice([0, 0, 0.3])]
        ]
        with Session(self.engine) as session:
            self.queue.enqueue_all(session, messages, if_exists="replace")
            if random.random() < 0.2:
                session.rollback()
                return
            session.commit()
        self.committed.update((key % TENANTS, key, self._version) for key in keys)
        self.last.update(dict.fromkeys(keys, self._version))


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "server",
    [
        "mysql",
        "sharded",
        pytest.param("mariadb", marks=pytest.mark.matrix),
        pytest.param("vtgate", marks=pytest.mark.matrix),
    ],
)
def test_the_last_payload_counts_once_though_holders_are_killed(server: str) -> None:
    url, suffix, sharded = server_url(server), secrets.token_hex(4), server == "sharded"
    queue, effects = tables(suffix, sharded=sharded)
    engine = create_engine(url)
    create_tables(engine, queue, effects, sharded=sharded)
    consumers = [Victim(consume, url, suffix, sharded) for _ in range(CONSUMERS)]
    producers = [Producer(engine, queue, number) for number in range(PRODUCERS)]

    def unsettled() -> int:
        with engine.connect() as connection:
            stats = queue.stats(connection)
        assert stats.dead == 0
        return stats.ready + stats.scheduled + stats.leased

    try:
        for consumer in consumers:
            consumer.wait_until_at_work()
        for producer in producers:
            producer.start()
        for _ in range(KILLS):
            time.sleep(random.uniform(0, 0.5))
            victim = random.randrange(CONSUMERS)
            consumers[victim].kill()
            consumers[victim] = Victim(consume, url, suffix, sharded)
            consumers[victim].wait_until_at_work()
        for producer in producers:
            producer.stopped.set()
            producer.join()
            assert producer.failure is None
        eventually(lambda: unsettled() == 0, within=120)
        with engine.connect() as connection:
            columns = effects.c.tenant, effects.c.key, effects.c.version
            done = [tuple(row) for row in connection.execute(select(*columns))]
        assert len(set(done)) == len(done)
        last = {key: version for producer in producers for key, version in producer.last.items()}
        assert len(last) == KEYS
        latest = {(key % TENANTS, key, version) for key, version in last.items()}
        assert latest <= set(done)
        assert set(done) <= set.union(*(producer.committed for producer in producers))
    finally:
        for producer in producers:
            producer.stopped.set()
        for consumer in consumers:
            consumer.kill()
        queue.metadata.drop_all(engine)
        engine.dispose()
