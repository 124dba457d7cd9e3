"""A paused queue delivers nothing, in any process, and goes on where it was when it is resumed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, StaticPool, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqla_vitess_messages import InvalidArgument, QueueNotFound, QueueOptions
from sqla_vitess_messages.cli.check import check_queues
from sqla_vitess_messages.rows.stats import QueueStats
from sqla_vitess_messages.table.pauses import PAUSES
from sqla_vitess_messages.testing import drain
from tests.backends import BACKENDS, Backend, ack, eventually, make_queue_class, row

Subscribe = Callable[..., Any]
Notes = Callable[[], list[str]]

WITHIN = 1.0
"""Seconds after which a pause must be effective."""

SPARE = 4.0
"""Seconds more, for a busy machine."""

sqlite_only = pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True)


@pytest.fixture
def pausable(engine: Engine, backend: Backend) -> Iterator[type[Any]]:
    """A queue that can be paused. The table of pauses stays, as other tests may be using it."""
    options: dict[str, Any] = {"ack_wait": 60, "poller_interval": 0.2, "pausable": True}
    if backend.server == "sharded":
        options |= {"shard_by": "tenant", "vindex": "hash"}
    model = make_queue_class(QueueOptions(**options))
    model.metadata.create_all(engine)
    yield model
    with Session(engine) as session, session.begin():
        model.resume(session)
    model.__table__.drop(engine)


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Notes:
    """Return a function that returns what was logged."""
    caplog.set_level(logging.INFO, "sqla_vitess_messages")
    return lambda: [record.getMessage() for record in caplog.records]


def enqueue(engine: Engine, *messages: Any) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add_all(messages)


def call(engine: Engine, method: Callable[[Session], Any]) -> Any:
    with Session(engine) as session, session.begin():
        return method(session)


def stats(engine: Engine, queue: type[Any]) -> QueueStats:
    with engine.connect() as connection:
        found: QueueStats = queue.stats(connection)
        return found


def test_a_paused_queue_delivers_nothing_until_it_is_resumed(
    engine: Engine, pausable: type[Any], subscribe: Subscribe, notes: Notes
) -> None:
    subscriber = subscribe(pausable)
    enqueue(engine, pausable(body="before"))
    ack(engine, subscriber.get(20))
    call(engine, pausable.pause)
    call(engine, pausable.pause)
    assert call(engine, pausable.is_paused) is True
    eventually(lambda: "the queue is paused" in notes())
    enqueue(engine, pausable(body="meanwhile"))
    assert subscriber.get(1) is None
    # A stream may have brought it before it was left.
    eventually(lambda: stats(engine, pausable).ready == 1)
    call(engine, pausable.resume)
    call(engine, pausable.resume)
    assert call(engine, pausable.is_paused) is False
    assert subscriber.get(20).body == "meanwhile"


def test_what_waits_in_a_subscriber_is_released_and_what_was_got_can_be_settled(
    engine: Engine, pausable: type[Any], subscribe: Subscribe
) -> None:
    messages = [pausable(body=str(n)) for n in range(5)]
    enqueue(engine, *messages)
    subscriber = subscribe(pausable)
    got = subscriber.get(20)
    eventually(lambda: stats(engine, pausable).leased == 5)
    call(engine, pausable.pause)
    eventually(lambda: stats(engine, pausable) if stats(engine, pausable).ready == 4 else None)
    assert subscriber.get(0.5) is None
    ack(engine, got)
    assert stats(engine, pausable).ready == 4
    call(engine, pausable.resume)
    again = [subscriber.get(20) for _ in range(4)]
    assert {message.attempts for message in again} == {0}
    assert {message.id for message in again} == {message.id for message in messages} - {got.id}
    ack(engine, *again)


def test_a_subscriber_that_is_full_follows_a_pause_within_a_second(
    engine: Engine, pausable: type[Any], subscribe: Subscribe
) -> None:
    """It has no other work that would wake it up."""
    enqueue(engine, *(pausable() for _ in range(2)))
    subscriber = subscribe(pausable, max_concurrency=2)
    got = subscriber.get(20)
    eventually(lambda: stats(engine, pausable).leased == 2)
    paused_at = time.monotonic()
    call(engine, pausable.pause)
    eventually(lambda: stats(engine, pausable).ready == 1)
    assert time.monotonic() - paused_at < WITHIN + SPARE
    assert subscriber.get(0) is None
    ack(engine, got)


def test_a_subscriber_that_is_opened_during_a_pause_gets_nothing(
    engine: Engine, pausable: type[Any], subscribe: Subscribe
) -> None:
    call(engine, pausable.pause)
    message = pausable()
    enqueue(engine, message)
    subscriber = subscribe(pausable)
    assert subscriber.get(1) is None
    assert row(engine, message).epoch == 0
    subscriber.close()
    subscriber.open()
    call(engine, pausable.resume)
    assert subscriber.get(20).id == message.id


def test_a_worker_pauses_and_goes_on(
    engine: Engine, pausable: type[Any], work: Callable[..., Any], notes: Notes
) -> None:
    handled: list[str] = []
    work(pausable, lambda message, _session: handled.append(message.body))
    enqueue(engine, pausable(body="before"))
    eventually(lambda: handled == ["before"])
    call(engine, pausable.pause)
    eventually(lambda: "the queue is paused" in notes())
    enqueue(engine, pausable(body="after"))
    time.sleep(0.5)
    assert handled == ["before"]
    call(engine, pausable.resume)
    eventually(lambda: handled == ["before", "after"])


@sqlite_only
def test_a_rolled_back_pause_pauses_nothing(
    engine: Engine, pausable: type[Any], subscribe: Subscribe
) -> None:
    with Session(engine) as session:
        pausable.pause(session)
        session.rollback()
    enqueue(engine, pausable())
    assert subscribe(pausable).get(20) is not None


@sqlite_only
def test_a_pause_is_checked_twice_a_second_and_not_more_often(
    engine: Engine, pausable: type[Any], subscribe: Subscribe
) -> None:
    checks: list[float] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_arguments: Any) -> None:
        if PAUSES in statement and statement.startswith("SELECT"):
            checks.append(time.monotonic())

    subscriber = subscribe(pausable)
    event.listen(subscriber._loop._engine, "before_cursor_execute", note)
    started = time.monotonic()
    enqueue(engine, *(pausable() for _ in range(50)))
    for _ in range(50):
        ack(engine, subscriber.get(20))
    subscriber.get(max(2.2 - (time.monotonic() - started), 0.1))
    assert 1 <= len(checks) <= (time.monotonic() - started) / 0.5 + 2


@sqlite_only
def test_other_queues_go_on(
    engine: Engine, pausable: type[Any], make_queue: Callable[..., type[Any]], subscribe: Subscribe
) -> None:
    other = make_queue(base=None)
    call(engine, pausable.pause)
    enqueue(engine, other())
    assert subscribe(other).get(20) is not None
    with pytest.raises(InvalidArgument, match=r"can't be paused: set pausable=True"):
        call(engine, other.pause)
    with pytest.raises(InvalidArgument, match=r"can't be paused"):
        call(engine, other.is_paused)


def test_drain_handles_nothing_while_a_queue_is_paused() -> None:
    queue = make_queue_class(QueueOptions(pausable=True))
    engine = create_engine("sqlite://", poolclass=StaticPool)
    queue.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    enqueue(engine, queue())
    call(engine, queue.pause)
    assert drain(queue, sessions, lambda _message, _session: None) == []
    call(engine, queue.resume)
    assert len(drain(queue, sessions, lambda _message, _session: None)) == 1
    engine.dispose()


@sqlite_only
def test_a_missing_table_of_pauses_is_reported(
    engine: Engine, pausable: type[Any], subscribe: Subscribe
) -> None:
    pausable.metadata.tables[PAUSES].drop(engine)
    with pytest.raises(QueueNotFound, match=f"no table '{PAUSES}'"):
        subscribe(pausable)
    with engine.connect() as connection:
        [finding] = check_queues(connection, [pausable.__table__])
    assert PAUSES in finding.problem
    pausable.metadata.create_all(engine)


def test_queues_of_one_metadata_share_the_table_of_pauses() -> None:
    metadata = MetaData()
    for _ in range(2):
        base: Any = type("Base", (DeclarativeBase,), {"metadata": metadata})
        make_queue_class(QueueOptions(pausable=True), base=base)
    assert [name for name in metadata.tables if "pauses" in name] == [PAUSES]
    assert PAUSES not in make_queue_class(QueueOptions()).metadata.tables
