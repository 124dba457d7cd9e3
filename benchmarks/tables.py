"""The queue that the benchmarks use, and its tables."""

from __future__ import annotations

import multiprocessing
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, BigInteger, Engine, String, create_engine, insert, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import MessageQueueMixin, QueueOptions

BODY = "x" * 100


def make_models(suffix: str, *, keyed: bool = False, **options: Any) -> tuple[type[Any], type[Any]]:
    """Return the model of a queue and that of its effects.

    :param keyed: whether the messages have a column ``okey``.
    """
    base = type("Base", (DeclarativeBase,), {})
    message = {
        "__tablename__": f"bench_{suffix}",
        "__queue__": QueueOptions(**{"ack_wait": 60, **options}),
        "__annotations__": {"body": Mapped[str]},
        "body": mapped_column(String(255)),
        "__module__": __name__,
        **({"okey": mapped_column(BigInteger, nullable=False)} if keyed else {}),
    }
    effect = {
        "__tablename__": f"bench_effect_{suffix}",
        "__annotations__": {"id": Mapped[int]},
        "id": mapped_column(BigInteger, primary_key=True, autoincrement=False),
        "__module__": __name__,
    }
    return type("Message", (MessageQueueMixin, base), message), type("Effect", (base,), effect)


@dataclass
class Bench:
    """One queue on one database.

    :param url: the database of the application's own engine.
    :param bind: the subscribers' bind.
    """

    url: URL
    suffix: str
    model: type[Any]
    effect: type[Any]
    engine: Engine
    bind: URL

    @property
    def table(self) -> str:
        return str(self.model.__tablename__)

    def enqueue(self, count: int, commit_each: int = 5_000) -> None:
        """Fill the queue with bulk inserts."""
        for first in range(0, count, commit_each):
            some = min(commit_each, count - first)
            with self.engine.begin() as connection:
                connection.execute(insert(self.model), [{"body": BODY}] * some)

    @contextmanager
    def burst(self, count: int) -> Iterator[None]:
        """Make another process enqueue ``count`` messages in one transaction."""
        context = multiprocessing.get_context("spawn")
        producer = context.Process(target=_burst, args=(self.url, self.suffix, count))
        producer.start()
        yield
        producer.join()


def _burst(url: URL, suffix: str, count: int) -> None:
    model, _ = make_models(suffix)
    with create_engine(url).begin() as connection:
        connection.execute(insert(model), [{"body": BODY}] * count)


@contextmanager
def bench(url: str | URL, *, bind: str | URL | None = None, **options: Any) -> Iterator[Bench]:
    """Create a queue's tables, and drop them at the end.

    :param options: of :class:`.QueueOptions`, and ``keyed`` of :func:`make_models`.
    """
    suffix = secrets.token_hex(4)
    url = make_url(url)
    model, effect = make_models(suffix, **options)
    engine = create_engine(url)
    model.metadata.create_all(engine)
    try:
        _wait_until_routable(engine, model)
        bound = url if bind is None else make_url(bind)
        yield Bench(url, suffix, model, effect, engine, bound)
    finally:
        model.metadata.drop_all(engine)
        engine.dispose()


def _wait_until_routable(engine: Engine, model: type[Any]) -> None:
    """Wait until vtgate can route to a new table, of which it learns asynchronously."""
    while True:
        try:
            with Session(engine) as session:
                session.execute(select(model.id).limit(1))
        except DBAPIError:
            time.sleep(0.05)
        else:
            return
