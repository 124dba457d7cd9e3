"""The database that a command works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.orm import Session

from ..rows.transient import retry_transaction
from ..urls import parse_url

__all__ = ["connect", "in_transaction"]

T = TypeVar("T")

_DRIVERS = {"sqlite": "sqlite", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
"""The drivers that are used in place of those for asyncio."""


@contextmanager
def connect(url: str) -> Iterator[Engine]:
    """Return an engine that is disposed of at the end.

    :param url: of the database, also with an asyncio driver, as an application may have it.
    :raises sqlalchemy.exc.ArgumentError: when it can't be parsed.
    """
    engine = create_engine(_without_asyncio(parse_url(url)))
    try:
        yield engine
    finally:
        engine.dispose()


def _without_asyncio(url: URL) -> URL:
    driver = _DRIVERS.get(url.get_backend_name())
    return url.set(drivername=driver) if driver and url.get_dialect().is_async else url


def in_transaction(engine: Engine, work: Callable[[Session], T]) -> T:
    """Call a function with a session, commit, and return its result.

    It is called again when the transaction failed only because of others at the same time.
    """

    def transaction() -> T:
        with Session(engine) as session, session.begin():
            return work(session)

    return retry_transaction(transaction)
