"""Calls at commit are made for every commit, and never after a rollback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import IntegrityError

from sqla_vitess_messages.rows import transactions
from sqla_vitess_messages.rows.transactions import Commit, call_at_commit


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


class Calls(list[str]):
    def record(self, word: str, _commit: Commit) -> None:
        self.append(word)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_a_commit_calls_once(connection: Connection, calls: Calls) -> None:
    with connection.begin():
        call_at_commit(connection, calls.record, "a")
        assert calls == []
    assert calls == ["a"]
    with connection.begin():
        pass
    assert calls == ["a"]


def test_a_rollback_forgets(connection: Connection, calls: Calls) -> None:
    transaction = connection.begin()
    call_at_commit(connection, calls.record, "a")
    transaction.rollback()
    with connection.begin():
        pass
    assert calls == []


def test_a_rolled_back_savepoint_forgets_what_is_inside(
    connection: Connection, calls: Calls
) -> None:
    with connection.begin():
        call_at_commit(connection, calls.record, "before")
        savepoint = connection.begin_nested()
        call_at_commit(connection, calls.record, "inside")
        savepoint.rollback()
        call_at_commit(connection, calls.record, "after")
    assert calls == ["before", "after"]


def test_a_savepoint_from_before_the_first_call_counts(
    connection: Connection, calls: Calls
) -> None:
    with connection.begin():
        savepoint = connection.begin_nested()
        call_at_commit(connection, calls.record, "inside")
        savepoint.rollback()
    assert calls == []


def test_a_released_savepoint_keeps(connection: Connection, calls: Calls) -> None:
    with connection.begin():
        with connection.begin_nested(), connection.begin_nested():
            call_at_commit(connection, calls.record, "inside")
        call_at_commit(connection, calls.record, "after")
    assert calls == ["inside", "after"]


def test_an_engine_with_options_is_the_same_engine(connection: Connection, calls: Calls) -> None:
    for engine in (connection.engine.execution_options(stream_results=False), connection.engine):
        with engine.connect() as optioned, optioned.begin():
            call_at_commit(optioned, calls.record, "before")
            savepoint = optioned.begin_nested()
            with optioned.begin_nested():
                call_at_commit(optioned, calls.record, "inside")
            savepoint.rollback()
    assert calls == ["before", "before"]


def test_only_engines_with_pending_calls_are_listened_to(connection: Connection) -> None:
    engine = connection.engine
    assert not event.contains(engine, "commit", transactions._on_commit)
    call_at_commit(connection, lambda _none, _commit: None, None)
    assert event.contains(engine, "commit", transactions._on_commit)


def test_threads_that_use_an_engine_first_wait_until_it_is_listened_to(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a thread that commits meanwhile misses the end of its transaction."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    listen = event.listen

    def commit() -> None:
        with engine.connect() as connection, connection.begin():
            call_at_commit(connection, calls.record, "a")

    def listen_slowly(target: Any, name: str, function: Any) -> None:
        if name == "commit" and not others:
            others.append(threading.Thread(target=commit))
            others[0].start()
            others[0].join(0.1)  # It commits now, unless it waits.
        listen(target, name, function)

    others: list[threading.Thread] = []
    monkeypatch.setattr(event, "listen", listen_slowly)
    commit()
    others[0].join()
    engine.dispose()
    assert calls == ["a", "a"]


def test_a_commit_is_over_when_the_server_has_answered(connection: Connection) -> None:
    commits: list[tuple[Commit, bool]] = []
    with connection.begin():
        call_at_commit(
            connection, lambda _none, commit: commits.append((commit, commit.is_over)), None
        )
    ((commit, was_over),) = commits
    assert (was_over, commit.is_over, commit.succeeded) == (False, True, True)


def test_a_commit_that_fails_has_not_succeeded(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    connection.exec_driver_sql("CREATE TABLE a (id INTEGER PRIMARY KEY)")
    connection.exec_driver_sql(
        "CREATE TABLE b (a INTEGER REFERENCES a DEFERRABLE INITIALLY DEFERRED)"
    )
    connection.commit()
    commits: list[Commit] = []
    transaction = connection.begin()
    call_at_commit(connection, lambda _none, commit: commits.append(commit), None)
    connection.exec_driver_sql("INSERT INTO b VALUES (1)")
    with pytest.raises(IntegrityError):
        transaction.commit()
    transaction.rollback()
    assert commits[0].is_over
    assert not commits[0].succeeded
