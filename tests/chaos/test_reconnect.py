"""Servers of a Vitess cluster fail under load: nothing is lost, and each effect happens once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, create_engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import AlreadySettled, QueueOptions, Subscriber, TransportName, random_id
from sqla_vitess_messages.transports.shards import find_shards
from tests.backends import ack, enqueue, eventually, make_queue_class
from tools.vitess import Cluster
from tools.vitess.cluster import SHARDED, TABLETS

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(240)]

TRANSPORTS: list[TransportName] = ["auto", "stream", "grpc"]


def kill_vtgate(cluster: Cluster) -> None:
    cluster.kill("vtgate-fast")
    cluster.restart("vtgate-fast")


def kill_vttablet(cluster: Cluster) -> None:
    tablet = cluster.primary().name
    cluster.kill(tablet)
    cluster.restart(tablet)


def reparent(cluster: Cluster) -> None:
    current = cluster.primary()
    cluster.reparent(next(t for t in TABLETS if t.keyspace == "main" and t != current))


def bind_of(cluster: Cluster, transport: TransportName) -> str:
    """Return the bind of a subscriber."""
    if transport == "grpc":
        return f"vitess+grpc://user@{cluster.grpc('vtgate-fast')}/main"
    return cluster.url(gate="vtgate-fast")


class Load:
    """A producer and a consumer, whose own transactions may fail any number of times."""

    def __init__(self, cluster: Cluster, transport: TransportName) -> None:
        url = cluster.url(gate="vtgate-fast")

        class Base(DeclarativeBase):
            pass

        self.queue = make_queue_class(
            QueueOptions(ack_wait=2, min_backoff=0.2, poller_interval=0.5), base=Base
        )

        class Effect(Base):
            __tablename__ = f"effect_of_{self.queue.__tablename__}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
            message_id: Mapped[int] = mapped_column(BigInteger)

        self.effect = Effect
        self.engine: Engine = create_engine(url, connect_args={"read_timeout": 10})
        no_timeout = create_engine(url)  # CREATE TABLE may be slow on a busy disk.
        Base.metadata.create_all(no_timeout)
        no_timeout.dispose()
        self.committed: set[int] = set()
        self.longest_gap = 0.0
        """The longest time between two deliveries, in seconds."""
        self.longest_outage = 0.0
        """The longest time between two commits of the producer, in seconds."""
        self._stop = threading.Event()
        self._subscriber = Subscriber(
            self.queue, bind_of(cluster, transport), max_concurrency=20, transport=transport
        )
        self._producer = threading.Thread(target=self._produce)
        self._consumer = threading.Thread(target=self._consume)

    def __enter__(self) -> Load:
        self._subscriber.open()
        self._producer.start()
        self._consumer.start()
        eventually(lambda: len(self._settled()) > 20, within=60)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._producer.join()
        self._subscriber.close()
        self._consumer.join()
        self.engine.dispose()

    def check(self) -> None:
        """Produce a little longer, then check that every committed message is settled once."""
        before = len(self.committed)
        eventually(lambda: len(self.committed) > before + 20, within=60)
        self._stop.set()
        self._producer.join()
        # Only the table shows the outcome of a commit whose response was lost.
        with self.engine.connect() as connection:
            enqueued = set(connection.scalars(select(self.queue.__table__.c.id)))
        assert self.committed <= enqueued
        eventually(lambda: self._settled() == enqueued, within=60)
        with self.engine.connect() as connection:
            effects = list(connection.scalars(select(self.effect.message_id)))
        assert len(effects) == len(set(effects))
        assert set(effects) == enqueued

    def _settled(self) -> set[int]:
        columns = self.queue.__table__.c
        with self.engine.connect() as connection:
            return set(
                connection.scalars(select(columns.id).where(columns.time_acked.is_not(None)))
            )

    def _produce(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            message = self.queue()
            id_ = message.id
            with suppress(DBAPIError):
                enqueue(self.engine, message)
                self.committed.add(id_)
                now = time.monotonic()
                self.longest_outage = max(self.longest_outage, now - last)
                last = now
            self._stop.wait(0.01)

    def _consume(self) -> None:
        last = time.monotonic()
        for message in self._subscriber:
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now
            with (
                suppress(DBAPIError, AlreadySettled),
                Session(self.engine) as session,
                session.begin(),
            ):
                session.add(self.effect(id=random_id(), message_id=message.id))
                message.ack(session)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("disaster", [kill_vtgate, kill_vttablet])
def test_nothing_is_lost_or_done_twice(
    cluster: Cluster, transport: TransportName, disaster: Callable[[Cluster], None]
) -> None:
    with Load(cluster, transport) as load:
        disaster(cluster)
        load.check()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_reparent_loses_nothing_and_leaves_no_long_silence(
    cluster: Cluster, transport: TransportName
) -> None:
    """Though vtgate leaves a stream silent for 6 s."""
    with Load(cluster, transport) as load:
        reparent(cluster)
        load.check()
    assert load.longest_gap < 2 + load.longest_outage


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_that_hangs_is_noticed(
    cluster: Cluster, transport: TransportName, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue_class(QueueOptions(ack_wait=60))
    engine = create_engine(cluster.url())
    queue.metadata.create_all(engine)
    gate = cluster.servers["vtgate-fast"]
    with Subscriber(queue, bind_of(cluster, transport), transport=transport) as subscriber:
        assert subscriber.get(0.5) is None
        gate.signal(signal.SIGSTOP)
        try:
            eventually(lambda: "trying again" in caplog.text, within=30)
        finally:
            gate.signal(signal.SIGCONT)
        enqueue(engine, queue(body="after"))
        message: Any = subscriber.get(60)
        assert message.body == "after"
    engine.dispose()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_close_does_not_wait_for_a_server_that_hangs(
    cluster: Cluster, transport: TransportName
) -> None:
    queue = make_queue_class(QueueOptions(ack_wait=60))
    engine = create_engine(cluster.url())
    queue.metadata.create_all(engine)
    engine.dispose()
    gate = cluster.servers["vtgate-fast"]
    before = set(threading.enumerate())
    subscriber = Subscriber(queue, bind_of(cluster, transport), transport=transport)
    subscriber.open()
    subscriber.get(0.5)
    gate.signal(signal.SIGSTOP)
    try:
        time.sleep(0.2)
        started = time.monotonic()
        subscriber.close()
        assert time.monotonic() - started < 2
        eventually(lambda: set(threading.enumerate()) <= before, within=30)
    finally:
        gate.signal(signal.SIGCONT)


def test_a_tablet_that_hangs_is_waited_for(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with Load(cluster, "stream") as load:
        tablet = cluster.servers[cluster.primary().name]
        tablet.signal(signal.SIGSTOP)
        try:
            eventually(lambda: "trying again" in caplog.text, within=30)
        finally:
            tablet.signal(signal.SIGCONT)
        load.check()


def test_subscribers_follow_a_change_of_shards(cluster: Cluster) -> None:
    """It must be the last test of this cluster, whose two shards become four."""
    url = cluster.url(SHARDED, gate="vtgate-fast")
    engine = create_engine(url, connect_args={"read_timeout": 10})
    options = QueueOptions(ack_wait=2, min_backoff=0.2, shard_by="tenant", vindex="hash")
    queue = make_queue_class(options)
    queue.metadata.create_all(engine)

    def count_shards() -> int:
        return len(find_shards(engine, queue.__table__) or [])

    splitting = threading.Thread(target=cluster.split_shards)
    rounds = 0
    with Subscriber(queue, url) as subscriber:
        eventually(lambda: len(find_shards(engine, queue.__table__) or []) == 2)
        splitting.start()
        while (
            splitting.is_alive()
            or len(find_shards(engine, queue.__table__) or []) < 4
            or rounds < 100
        ):
            rounds += 1
            with suppress(DBAPIError):
                enqueue(engine, queue())
            if (message := subscriber.get(0.1)) is not None:
                with suppress(DBAPIError, AlreadySettled):
                    ack(engine, message)
        splitting.join()

        def all_settled() -> bool:
            if (message := subscriber.get(0.1)) is not None:
                with suppress(AlreadySettled):
                    ack(engine, message)
            with engine.connect() as connection:
                stats = queue.stats(connection)
            return stats.acked > 50 and stats.ready == stats.leased == 0

        eventually(all_settled, within=60)
    engine.dispose()
