"""The databases and transports that the suite runs over, and helpers for its queues."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import URL, BigInteger, Connection, Engine, String, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import (
    Grpc,
    MessageQueueMixin,
    QueueOptions,
    RetryPolicy,
    Subscriber,
    TransportName,
    Worker,
    random_id,
)
from sqla_vitess_messages.aio import AsyncSubscriber
from sqla_vitess_messages.rows.transient import retry_transaction
from tests.async_adapter import AsyncSubscriberAdapter, AsyncWorkerAdapter
from tests.servers import server_url


@dataclass(frozen=True)
class Backend:
    """A database server (None: SQLite), and how to receive from it.

    :param driver: an asyncio driver, to receive with an AsyncSubscriber; None for a Subscriber.
    """

    name: str
    server: str | None
    transport: TransportName
    driver: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make a subscriber receive over this transport."""
        if self.transport != "grpc":
            return {"transport": self.transport}
        return {"transport": Grpc(server_url(f"{self.server} grpc"))}


BACKENDS = [
    Backend("sqlite", None, "auto"),
    Backend("mysql", "mysql", "auto"),
    Backend("mariadb", "mariadb", "auto"),
    Backend("vitess", "vtgate", "auto"),
    Backend("vitess-sharded", "sharded", "auto"),
    Backend("vitess-stream", "vtgate-fast", "stream"),
    Backend("vitess-grpc", "vtgate", "grpc"),
    Backend("vitess-grpc-asyncio", "vtgate", "grpc", "asyncmy"),
    Backend("sqlite-asyncio", None, "auto", "aiosqlite"),
    Backend("vitess-asyncio", "vtgate", "auto", "asyncmy"),
]

EVERYWHERE = [
    *BACKENDS,
    Backend("dev-stream", "dev", "stream"),
    Backend("dev-grpc", "dev", "grpc"),
    Backend("vitess-sharded-grpc", "sharded", "grpc"),
    Backend("vitess-sharded-asyncio", "sharded", "auto", "asyncmy"),
]
"""For the most important tests: also those that differ from another backend by the server only."""

STREAMS = ("stream", "grpc")
"""The transports by which the server pushes messages."""

PULLING = [backend for backend in BACKENDS if backend.transport == "auto"]
"""The backends without a stream, which may be sent more messages than it has free slots."""

pulling_in_threads = pytest.mark.parametrize(
    "backend",
    [backend for backend in PULLING if backend.driver is None],
    indirect=True,
    ids=lambda backend: backend.name,
)
"""For tests to which neither the transport nor asyncio makes a difference: each server once."""


def make_queue_class(
    options: QueueOptions,
    *,
    base: type[DeclarativeBase] | None = None,
    attributes: dict[str, Any] | None = None,
) -> type[Any]:
    """Return a new queue model with a unique table name."""
    if base is None:
        base = type("Base", (DeclarativeBase,), {})
    body = {
        "__tablename__": f"queue_{secrets.token_hex(6)}",
        "__queue__": options,
        "__annotations__": {"body": Mapped[str]},
        "body": mapped_column(String(255), default=""),
        "__module__": __name__,
        **(attributes or {}),
    }
    mapped = {getattr(attribute, "name", None) for attribute in (attributes or {}).values()}
    if options.shard_by == ("tenant",) and "tenant" not in mapped:
        body["tenant"] = mapped_column(BigInteger, nullable=False, default=random_id)
    return type("Message", (MessageQueueMixin, base), body)


def async_url(url: str | URL, driver: str) -> URL:
    """Return the URL with an asyncio driver."""
    return make_url(url).set(drivername=f"{make_url(url).get_backend_name()}+{driver}")


def make_subscriber(backend: Backend, model: type[Any], bind: Any, **options: Any) -> Any:
    """Return a Subscriber, or an adapter with its interface."""
    options = {**backend.options, **options}
    if backend.driver is None:
        return Subscriber(model, bind, **options)
    url = bind.url if isinstance(bind, Engine) else bind
    bound = async_url(url, backend.driver)
    return AsyncSubscriberAdapter(model, bound, **options)


QUICK = RetryPolicy(max_attempts=2, min_delay=0.01, max_delay=0.02)
"""Two attempts, one soon after the other."""


class WorkerAdapter:
    """Has the interface of AsyncWorkerAdapter, for a Worker."""

    def __init__(
        self,
        subscriber: Subscriber[Any],
        engine: Engine,
        handler: Callable[..., Any],
        **options: Any,
    ) -> None:
        self.engine = engine
        self._worker: Worker[Any] = Worker(subscriber, handler, sessionmaker(engine), **options)

    @property
    def running(self) -> int:
        """How many threads work."""
        return self._worker._running

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> bool:
        return self._worker.stop()


def make_worker(
    backend: Backend,
    model: type[Any],
    engine: Engine,
    handler: Callable[..., Any],
    subscriber_options: dict[str, Any] | None = None,
    **options: Any,
) -> WorkerAdapter | AsyncWorkerAdapter:
    """Return a Worker or an AsyncWorker, for an ordinary function with a synchronous session."""
    options = {"retry": QUICK, "concurrency": 2, "shutdown_timeout": 10} | options
    receiving = {**backend.options, **(subscriber_options or {})}
    if backend.driver is None:
        return WorkerAdapter(Subscriber(model, engine, **receiving), engine, handler, **options)
    url = async_url(engine.url, backend.driver)
    subscriber = AsyncSubscriber(model, url, **receiving)
    return AsyncWorkerAdapter(subscriber, url, handler, **options)


def enqueue(engine: Engine, *messages: Any) -> None:
    """Add messages in one transaction."""
    with Session(engine) as session, session.begin():
        session.add_all(messages)


def ack(engine: Engine, *messages: Any) -> None:
    """Ack messages in one transaction, and retry if it deadlocks, as with Vitess's postpone."""

    def transaction() -> None:
        with Session(engine) as session, session.begin():
            for message in messages:
                message.ack(session)

    retry_transaction(transaction)


def all_rows(bind: Connection | Session, table: Any) -> Iterator[Any]:
    """Read a whole table in chunks, because Vitess refuses to send more than 10,000 rows."""
    last = 0
    while rows := bind.execute(
        select(table).where(table.c.id > last).order_by(table.c.id).limit(5000)
    ).all():
        yield from rows
        last = rows[-1].id


def row(engine: Engine, message: Any) -> Any:
    """Return the message's current row, or None if it was deleted."""
    table = type(message).__table__
    with engine.connect() as connection:
        return connection.execute(select(table).where(table.c.id == message.id)).one_or_none()


def eventually(condition: Callable[[], Any], within: float = 30) -> Any:
    """Poll a condition until it is true, and return its value.

    :raises AssertionError: when it isn't true in time.
    """
    ends_at = time.monotonic() + within
    while True:
        if value := condition():
            return value
        assert time.monotonic() < ends_at, f"not within {within} s"
        time.sleep(0.02)
