"""Fixtures for pytest, which finds them where this library is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, StaticPool, create_engine, event
from sqlalchemy.orm import Session, sessionmaker

from .testing import Clock, travelling_clock

__all__ = ["message_clock", "message_sessions"]


@pytest.fixture
def message_sessions() -> Iterator[Callable[[MetaData], sessionmaker[Session]]]:
    """Make tables in a new SQLite database in memory, and sessions on it."""
    engines: list[Engine] = []

    def make(metadata: MetaData) -> sessionmaker[Session]:
        engine = create_engine("sqlite://", poolclass=StaticPool)
        engines.append(engine)
        event.listen(engine, "connect", _leave_transactions_to_sqlalchemy)
        event.listen(engine, "begin", _begin)
        metadata.create_all(engine)
        return sessionmaker(engine)

    yield make
    for engine in engines:
        engine.dispose()


def _leave_transactions_to_sqlalchemy(dbapi_connection: Any, _record: object) -> None:
    """Make savepoints part of a transaction: the driver doesn't begin one for them."""
    dbapi_connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


@pytest.fixture
def message_clock() -> Iterator[Clock]:
    """Stop the time, until ``message_clock.move_by(seconds)``."""
    with travelling_clock() as clock:
        yield clock
