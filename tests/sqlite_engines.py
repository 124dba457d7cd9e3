"""Engines for SQLite of the kinds that applications make, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, SingletonThreadPool
from sqlalchemy.util import greenlet_spawn

T = TypeVar("T")

python_3_12 = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sqlite3.connect(autocommit=…) is new in Python 3.12"
)

DRIVERS = (None, "aiosqlite")
"""None: sqlite3, for threads."""


@dataclass(frozen=True)
class Kind:
    """A way to make an engine.

    :param arguments: of ``create_engine``.
    :param recipe: None, or which engines SQLAlchemy's recipe for SQLite sends a BEGIN on: this
        ``"engine"``, or those of the ``"class"``.
    """

    name: str
    arguments: dict[str, Any]
    recipe: str | None = None
    marks: tuple[Any, ...] = ()

    @contextmanager
    def engine(self, url: str, driver: str | None) -> Iterator[Engine | AsyncEngine]:
        """Make an engine for the length of a block."""
        made: Engine | AsyncEngine
        if driver is None:
            made = engine = create_engine(url, **self.arguments)
        else:
            made = create_async_engine(
                url.replace("sqlite:", f"sqlite+{driver}:"), **self.arguments
            )
            engine = made.sync_engine
        try:
            with self._recipe(engine):
                yield made
        finally:
            if driver is None:  # Else whoever runs the event loop disposes of it.
                engine.dispose()

    @contextmanager
    def _recipe(self, engine: Engine) -> Iterator[None]:
        if self.recipe is None:
            yield
            return
        target: Any = Engine if self.recipe == "class" else engine
        event.listen(target, "connect", leave_transactions_to_sqlalchemy)
        event.listen(target, "begin", begin)
        try:
            yield
        finally:
            event.remove(target, "connect", leave_transactions_to_sqlalchemy)
            event.remove(target, "begin", begin)


def leave_transactions_to_sqlalchemy(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None


def begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


KINDS = [
    Kind("default", {}),
    Kind("immediate", {"connect_args": {"isolation_level": "IMMEDIATE"}}),
    Kind("serializable", {"isolation_level": "SERIALIZABLE"}),
    Kind("null-pool", {"poolclass": NullPool}),
    Kind("begin", {}, recipe="engine"),
    Kind("begin-of-class", {}, recipe="class"),
    Kind("autocommit-false", {"connect_args": {"autocommit": False}}, marks=(python_3_12,)),
]
"""Engines with transactions."""

WITHOUT_TRANSACTIONS = [
    Kind("autocommit", {"isolation_level": "AUTOCOMMIT"}),
    Kind("autocommit-option", {"execution_options": {"isolation_level": "AUTOCOMMIT"}}),
    Kind("no-isolation-level", {"connect_args": {"isolation_level": None}}),
    Kind("autocommit-true", {"connect_args": {"autocommit": True}}, marks=(python_3_12,)),
]
"""Engines on which each statement commits by itself."""

THREADS_ONLY = [
    Kind("singleton-thread-pool", {"poolclass": SingletonThreadPool}),
    Kind("one-connection", {"pool_size": 1, "max_overflow": 0}),
]


def with_drivers(*kinds: Kind) -> Any:
    """Parametrize a test with kinds of engines, each with each driver."""
    return pytest.mark.parametrize(
        ("kind", "driver"),
        [
            pytest.param(kind, driver, marks=kind.marks, id=f"{kind.name}-{driver or 'sqlite3'}")
            for kind in kinds
            for driver in DRIVERS
        ],
    )


def run(engine: Engine | AsyncEngine, work: Callable[[Engine], T]) -> T:
    """Call a function that uses an engine, with asyncio in an event loop."""
    if isinstance(engine, Engine):
        return work(engine)

    async def main() -> T:
        try:
            return await greenlet_spawn(work, engine.sync_engine)
        finally:
            await engine.dispose()

    return asyncio.run(main())


def is_in_transaction(connection: Connection) -> bool:
    """Return whether SQLite has a transaction open."""
    driver: Any = connection.connection.driver_connection
    assert hasattr(driver, "in_transaction"), sqlite3.version_info
    found: bool = driver.in_transaction
    return found
