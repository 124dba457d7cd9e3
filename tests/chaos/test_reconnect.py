"""Servers of a Vitess cluster fail under load: nothing is lost, and each effect happens once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import BigInteger, create_engine, event, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import (
    AlreadySettled,
    QueueOptions,
    QueueStats,
    RetryPolicy,
    Subscriber,
    TransportName,
    Worker,
    random_id,
)
from sqla_vitess_messages.transports.shards import find_shards
from sqla_vitess_messages.vitess.refusals import is_refusal
from tests.backends import ack, enqueue, eventually, make_queue_class
from tests.chaos.load import Load, bind_of
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


def test_a_reparent_is_no_failed_attempt(cluster: Cluster) -> None:
    """Vitess refuses statements until the shard has a primary again."""

    class Base(DeclarativeBase):
        pass

    queue = make_queue_class(QueueOptions(ack_wait=20), base=Base)

    class Effect(Base):
        __tablename__ = f"effect_of_{queue.__tablename__}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
        message_id: Mapped[int] = mapped_column(BigInteger)

    engine = create_engine(cluster.url(), pool_size=20)
    Base.metadata.create_all(engine)
    refusals: list[str] = []
    reparented = threading.Event()

    @event.listens_for(engine, "handle_error")
    def record(context: ExceptionContext) -> None:
        if isinstance(context.sqlalchemy_exception, DBAPIError) and is_refusal(
            context.sqlalchemy_exception
        ):
            refusals.append(str(context.original_exception))

    def handle(message: Any, session: Session) -> None:
        session.add(Effect(message_id=message.id))
        session.flush()
        reparented.wait(0.02)

    def stats() -> QueueStats:
        with engine.connect() as connection:
            counted: QueueStats = queue.stats(connection)
            return counted

    only_once = RetryPolicy(max_attempts=1)
    subscriber = Subscriber(queue, cluster.url(), max_concurrency=50)
    worker = Worker(subscriber, handle, sessionmaker(engine), concurrency=8, retry=only_once)
    worker.start()
    committed = 0
    while len(refusals) < 5:
        for _ in range(5):
            enqueue(engine, *(queue() for _ in range(100)))
            committed += 100
        reparent(cluster)
        eventually(lambda: stats().ready == stats().leased == 0, within=60)
    reparented.set()
    assert worker.stop()
    with engine.connect() as connection:
        counted = stats()
        assert (counted.acked, counted.dead) == (committed, 0)
        effects = list(connection.scalars(select(Effect.message_id)))
    assert len(effects) == len(set(effects)) == committed
    Base.metadata.drop_all(engine)
    engine.dispose()


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
