"""The databases and transports that the one delivery suite runs over, and queues to run it with."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, BigInteger, Engine, String, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import MessageQueueMixin, QueueOptions, Subscriber
from sqla_vitess_messages.deadlocks import despite_deadlocks
from sqla_vitess_messages.enqueue import random_id
from sqla_vitess_messages.transports import TransportName
from tests.in_thread import AsyncSubscriberInThread
from tests.servers import server_url


@dataclass(frozen=True)
class Backend:
    """A database server (None: SQLite), and how to receive from it.

    :param driver: an asyncio driver, which stands for an AsyncSubscriber.
    """

    name: str
    server: str | None
    transport: TransportName
    driver: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of a subscriber that receives in this way."""
        if self.transport != "grpc":
            return {"transport": self.transport}
        return {"transport": "grpc", "grpc": server_url(f"{self.server} grpc")}


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
"""For the heart of the suite: also what differs from another backend by its server alone."""

STREAMS = ("stream", "grpc")
"""The transports that the server pushes through."""

PULLING = [backend for backend in BACKENDS if backend.transport == "auto"]
"""A stream may be sent more than it has room for."""


def make_queue_class(
    options: QueueOptions,
    *,
    base: type[DeclarativeBase] | None = None,
    attributes: dict[str, Any] | None = None,
) -> type[Any]:
    """Make a queue model with a table name that no other test has."""
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
    if options.shard_by == ("tenant",):
        body["tenant"] = mapped_column(BigInteger, nullable=False, default=random_id)
    return type("Message", (MessageQueueMixin, base), body)


def async_url(url: str | URL, driver: str) -> URL:
    """Return the URL with an asyncio driver."""
    return make_url(url).set(drivername=f"{make_url(url).get_backend_name()}+{driver}")


def make_subscriber(backend: Backend, model: type[Any], bind: Any, **options: Any) -> Any:
    """Return a Subscriber, or what looks like one."""
    if backend.driver is None:
        return Subscriber(model, bind, **backend.options, **options)
    url = bind.url if isinstance(bind, Engine) else bind
    bound = async_url(url, backend.driver)
    return AsyncSubscriberInThread(model, bound, **backend.options, **options)


def enqueue(engine: Engine, *messages: Any) -> None:
    """Add messages in one transaction."""
    with Session(engine) as session, session.begin():
        session.add_all(messages)


def ack(engine: Engine, *messages: Any) -> None:
    """Ack messages in one transaction, again if it meets a deadlock, as Vitess's postpone may."""

    def transaction() -> None:
        with Session(engine) as session, session.begin():
            for message in messages:
                message.ack(session)

    despite_deadlocks(transaction)


def row(engine: Engine, message: Any) -> Any:
    """Return the message's row as it is now, None if it is gone."""
    table = type(message).__table__
    with engine.connect() as connection:
        return connection.execute(select(table).where(table.c.id == message.id)).one_or_none()


def eventually(condition: Callable[[], Any], within: float = 15) -> Any:
    """Return the condition's first true answer.

    :raises AssertionError: when there is none in time.
    """
    deadline = time.monotonic() + within
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.02)
