"""A producer and a consumer that work while servers fail."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import BigInteger, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import AlreadySettled, QueueOptions, Subscriber, TransportName, random_id
from sqla_vitess_messages.vitess.vschema import AddVindex, alter_vschema, wait_until_routable
from tests.backends import all_rows, enqueue, eventually, make_queue_class
from tools.vitess import Cluster
from tools.vitess.cluster import MAIN, SHARDED

__all__ = ["Load", "bind_of"]

GATE = "vtgate-fast"


def bind_of(cluster: Cluster, transport: TransportName, keyspace: str = MAIN) -> str:
    """Return the bind of a subscriber."""
    if transport == "grpc":
        return f"vitess+grpc://user@{cluster.grpc(GATE)}/{keyspace}"
    return cluster.url(keyspace, GATE)


class Load:
    """A producer and a consumer, whose own transactions may fail any number of times."""

    def __init__(self, cluster: Cluster, transport: TransportName, keyspace: str = MAIN) -> None:
        url = cluster.url(keyspace, GATE)

        class Base(DeclarativeBase):
            pass

        options: dict[str, Any] = {"ack_wait": 2, "min_backoff": 0.2, "poller_interval": 0.5}
        if keyspace == SHARDED:
            options |= {"shard_by": "tenant", "vindex": "hash"}
        self.queue = make_queue_class(QueueOptions(**options), base=Base)

        class Effect(Base):
            __tablename__ = f"effect_of_{self.queue.__tablename__}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
            message_id: Mapped[int] = mapped_column(BigInteger)
            tenant: Mapped[int | None] = mapped_column(BigInteger)

        self.effect = Effect
        self.engine: Engine = create_engine(url, connect_args={"read_timeout": 10})
        no_timeout = create_engine(url)  # CREATE TABLE may be slow on a busy disk.
        Base.metadata.create_all(no_timeout)
        if keyspace == SHARDED:
            with no_timeout.connect() as connection:
                vindex = AddVindex(Effect.__tablename__, ["tenant"], "hash")
                alter_vschema(connection, vindex)
                wait_until_routable(connection, Effect.__table__)
        no_timeout.dispose()
        self.committed: set[int] = set()
        self.consumed = 0
        """How many transactions of the consumer have committed."""
        self.longest_gap = 0.0
        """The longest time between two deliveries, in seconds."""
        self.longest_outage = 0.0
        """The longest time between two commits of the producer, in seconds."""
        self._stop = threading.Event()
        self._subscriber = Subscriber(
            self.queue, bind_of(cluster, transport, keyspace), max_concurrency=20,
            transport=transport,
        )  # fmt: skip
        self._producer = threading.Thread(target=self._produce)
        self._consumer = threading.Thread(target=self._consume)

    def __enter__(self) -> Load:
        self._subscriber.open()
        self._producer.start()
        self._consumer.start()
        eventually(lambda: self.consumed > 20, within=60)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._producer.join()
        self._subscriber.close()
        self._consumer.join()
        self.engine.dispose()

    def check(self) -> None:
        """Produce a little longer, then check that every committed message is settled once."""
        self.wait_for_progress()
        self._stop.set()
        self._producer.join()
        # Only the table shows the outcome of a commit whose response was lost.
        with self.engine.connect() as connection:
            enqueued = {row.id for row in all_rows(connection, self.queue.__table__)}
        assert self.committed <= enqueued
        eventually(lambda: self._settled() == enqueued, within=60)
        with self.engine.connect() as connection:
            effects = [row.message_id for row in all_rows(connection, self.effect.__table__)]
        assert len(effects) == len(set(effects))
        assert set(effects) == enqueued

    def wait_for_progress(self) -> None:
        """Wait until some more messages were enqueued and settled."""
        enqueued, consumed = len(self.committed), self.consumed
        eventually(
            lambda: len(self.committed) > enqueued + 20 and self.consumed > consumed + 20, within=60
        )

    def _settled(self) -> set[int]:
        with self.engine.connect() as connection:
            rows = all_rows(connection, self.queue.__table__)
            return {row.id for row in rows if row.time_acked is not None}

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
            tenant = getattr(message, "tenant", None)
            with suppress(DBAPIError, AlreadySettled):
                with Session(self.engine) as session, session.begin():
                    session.add(self.effect(id=random_id(), message_id=message.id, tenant=tenant))
                    message.ack(session)
                self.consumed += 1
