"""A subscriber on SQLite notices the commits of other processes without polling for them."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert
from sqlalchemy.orm import Session

from sqla_vitess_messages import Pull
from sqla_vitess_messages.transports import sqlite_watch
from sqla_vitess_messages.transports.sqlite_watch import database_file, watch_commits
from tests.backends import BACKENDS, Backend, eventually

MakeQueue = Callable[..., type[Any]]

pytestmark = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.server is None],
    ids=lambda backend: backend.name,
)

Receive = Callable[[type[Any]], Any]


@pytest.fixture
def receive(subscribe: Callable[..., Any]) -> Receive:
    """Return a function that opens a subscriber which polls by itself only once an hour."""

    def open_subscriber(queue: type[Any]) -> Any:
        subscriber = subscribe(queue, transport=Pull(poll_interval=3600))
        assert subscriber.get(0.1) is None
        return subscriber

    return open_subscriber


def watching() -> int:
    return sum(thread.name == "SqliteWatch" for thread in threading.enumerate())


def test_a_commit_of_another_process_is_noticed(
    queue: type[Any], engine: Engine, receive: Receive
) -> None:
    subscriber = receive(queue)
    for number in range(3):
        with engine.begin() as connection:  # A Core INSERT notifies nobody in this process.
            connection.execute(insert(queue), {"body": str(number)})
        message = subscriber.get(10)
        assert message is not None
        assert message.body == str(number)


def test_time_makes_messages_due_without_a_commit(
    make_queue: MakeQueue, engine: Engine, receive: Receive
) -> None:
    queue = make_queue(ack_wait=0.3, min_backoff=0.1)
    subscriber = receive(queue)
    with Session(engine) as session, session.begin():
        session.add(queue(deliver_in=0.4))
    first = subscriber.get(10)
    assert first is not None
    again = subscriber.get(10)  # Its lease was not renewed.
    assert again is not None
    assert (again.id, again.attempts) == (first.id, 1)


def test_subscribers_of_one_file_share_a_thread_that_ends_with_the_last_of_them(
    make_queue: MakeQueue, receive: Receive
) -> None:
    one, other = receive(make_queue()), receive(make_queue())
    eventually(lambda: watching() == 1)
    one.close()
    assert watching() == 1
    other.close()
    eventually(lambda: not watching())


def test_a_commit_at_the_moment_when_watching_begins_is_noticed(
    tmp_path: Path, backend: Backend
) -> None:
    file = str(tmp_path / "new.db")
    with closing(sqlite3.connect(file)) as connection:
        for number in range(50):
            seen = threading.Event()

            def poll(table: str = f"t{number}", seen: threading.Event = seen) -> None:
                with closing(sqlite3.connect(file)) as reader:
                    if reader.execute(f"PRAGMA table_info({table})").fetchall():
                        seen.set()

            watch = watch_commits(file, poll)
            connection.execute(f"CREATE TABLE t{number} (x)")
            assert seen.wait(10)
            watch.close()


def test_a_file_is_checked_more_often_soon_after_a_commit(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: deque[float] = deque(maxlen=5)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        threading.Event().wait(seconds)

    monkeypatch.setattr(sqlite_watch, "time", SimpleNamespace(sleep=sleep, monotonic=monotonic))
    monkeypatch.setattr(sqlite_watch, "BUSY_FOR", 0.5)
    file = str(tmp_path / "new.db")
    with closing(sqlite3.connect(file)) as connection:
        watch = watch_commits(file, lambda: None)
        eventually(lambda: list(waits) == [sqlite_watch.IDLE_INTERVAL] * 5)
        connection.execute("CREATE TABLE something (x)")
        eventually(lambda: sqlite_watch.BUSY_INTERVAL in list(waits))
        eventually(lambda: sqlite_watch.BUSY_INTERVAL not in list(waits))
        watch.close()


def test_a_file_that_cannot_be_watched_is_left_alone(tmp_path: Path, backend: Backend) -> None:
    calls: list[int] = []
    watch = watch_commits(str(tmp_path / "missing.db"), lambda: calls.append(1))
    eventually(lambda: not watch.is_alive)
    assert not (tmp_path / "missing.db").exists()
    watch.close()
    assert not calls


def test_only_files_of_pythons_own_sqlite_are_watched(
    queue: type[Any], engine: Engine, tmp_path: Path, backend: Backend
) -> None:
    """Another copy of the SQLite library would lose its locks when this one closes the file."""

    class Foreign:
        def __init__(self) -> None:
            self._connection = sqlite3.connect(tmp_path / "test.db")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    foreign = create_engine("sqlite://", creator=Foreign)
    with engine.connect() as connection:
        assert database_file(connection, queue.__table__) == str(tmp_path / "test.db")
    with foreign.connect() as connection:
        assert database_file(connection, queue.__table__) is None
    foreign.dispose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_watches_by_a_thread_of_its_own(
    queue: type[Any], tmp_path: Path, receive: Receive, backend: Backend
) -> None:
    receive(queue)
    assert watching() == 1
    child = os.fork()
    if child == 0:
        seen = threading.Event()
        watch_commits(str(tmp_path / "test.db"), seen.set)
        eventually(lambda: watching() == 1)
        with sqlite3.connect(tmp_path / "test.db") as connection:
            connection.execute("CREATE TABLE something (x)")
        os._exit(not seen.wait(10))
    _child, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
