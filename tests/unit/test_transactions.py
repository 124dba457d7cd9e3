"""Calls at commit: neither lost nor made for what was rolled back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine

from sqla_vitess_messages.transactions import after_commit


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def calls() -> list[str]:
    return []


def test_a_commit_calls_once(connection: Connection, calls: list[str]) -> None:
    with connection.begin():
        after_commit(connection, calls.append, "a")
        assert calls == []
    assert calls == ["a"]
    with connection.begin():
        pass
    assert calls == ["a"]


def test_a_rollback_forgets(connection: Connection, calls: list[str]) -> None:
    transaction = connection.begin()
    after_commit(connection, calls.append, "a")
    transaction.rollback()
    with connection.begin():
        pass
    assert calls == []


def test_a_rolled_back_savepoint_forgets_what_is_inside(
    connection: Connection, calls: list[str]
) -> None:
    with connection.begin():
        after_commit(connection, calls.append, "before")
        savepoint = connection.begin_nested()
        after_commit(connection, calls.append, "inside")
        savepoint.rollback()
        after_commit(connection, calls.append, "after")
    assert calls == ["before", "after"]


def test_a_savepoint_from_before_the_first_call_counts(
    connection: Connection, calls: list[str]
) -> None:
    with connection.begin():
        savepoint = connection.begin_nested()
        after_commit(connection, calls.append, "inside")
        savepoint.rollback()
    assert calls == []


def test_a_released_savepoint_keeps(connection: Connection, calls: list[str]) -> None:
    with connection.begin():
        with connection.begin_nested(), connection.begin_nested():
            after_commit(connection, calls.append, "inside")
        after_commit(connection, calls.append, "after")
    assert calls == ["inside", "after"]
