"""The purge of acked messages, where subscribers do it: it disturbs no delivery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, ForeignKey, Pool, Table, event, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vitess_messages import clock
from sqla_vitess_messages.events import Event, Reconnecting
from sqla_vitess_messages.table.options import Layout
from sqla_vitess_messages.transports import purge
from tests.backends import BACKENDS, Backend, ack, enqueue, eventually

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]

PURGING = [
    *(backend for backend in BACKENDS if backend.server in (None, "mysql", "mariadb")),
    Backend("mysql-asyncio", "mysql", "auto", "asyncmy"),
]

purging = pytest.mark.parametrize("backend", PURGING, indirect=True, ids=lambda b: b.name)
row_locking = pytest.mark.parametrize("backend", PURGING[1:3], indirect=True, ids=lambda b: b.name)


@pytest.fixture
def make_old_queue(make_queue: MakeQueue) -> MakeQueue:
    """Return a factory of queues that are purged soon."""

    def make(**options: Any) -> type[Any]:
        return make_queue(**{"purge_after": 60, "poller_interval": 0.1, "ack_wait": 60} | options)

    return make


def add_acked(engine: Engine, queue: type[Any], count: int) -> list[int]:
    """Insert messages that were acked long ago, and return their ids."""
    long_ago = clock.now() - clock.to_nanoseconds(3600)
    ids = list(range(1, count + 1))
    with engine.begin() as connection:
        for start in range(0, count, 1000):
            rows = [
                {"id": id_, "time_next": None, "time_acked": long_ago, "time_scheduled": long_ago}
                for id_ in ids[start : start + 1000]
            ]
            connection.execute(insert(queue.__table__), rows)
    return ids


def ids_of(engine: Engine, table: Table) -> set[int]:
    with engine.connect() as connection:
        return set(connection.scalars(select(table.c.id)))


def count_of(engine: Engine, table: Table) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


class Statements:
    """Records the statements on a table by all engines while the block lasts."""

    def __init__(self, table: Table) -> None:
        self._table = table.name
        self.kinds: list[str] = []

    def __enter__(self) -> Statements:
        event.listen(Engine, "before_cursor_execute", self._record)
        return self

    def __exit__(self, *_error: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._record)

    def _record(self, _c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if self._table in statement:
            verb = statement.split(maxsplit=1)[0]
            polls = any(f"time_next {sign}" in statement for sign in "<-")
            self.kinds.append("poll" if polls else verb)


@pytest.fixture
def foreign_keys() -> Iterator[None]:
    """Make SQLite check foreign keys."""

    def check(connection: Any, _record: object) -> None:
        if "sqlite" in type(connection).__module__.lower():
            cursor = connection.cursor()
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.close()

    event.listen(Pool, "connect", check)
    yield
    event.remove(Pool, "connect", check)


@pytest.fixture
def referred(engine: Engine, make_queue: MakeQueue, foreign_keys: None) -> Any:
    """Return a factory of a queue and of a table whose rows refer to its messages."""

    def make(**key: Any) -> tuple[type[Any], Table]:
        base = type("Base", (DeclarativeBase,), {})
        queue = make_queue(base, purge_after=60, poller_interval=0.1, ack_wait=60)
        name = queue.__tablename__

        class Audit(base):  # type: ignore[valid-type,misc]
            __tablename__ = f"audit_{name}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
            message_id: Mapped[int] = mapped_column(
                ForeignKey(f"{name}.id", name=f"fk_{name}", **key)
            )

        table: Any = Audit.__table__
        table.create(engine)
        return queue, table

    return make


def refer(engine: Engine, audit: Table, ids: Sequence[int]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(audit), [{"id": id_, "message_id": id_} for id_ in ids])


@contextmanager
def locked(engine: Engine, queue: type[Any], ids: Sequence[int]) -> Iterator[None]:
    """Lock rows for the length of a block, in a transaction of another session."""
    # At MySQL's default level all rows and gaps that it reads are locked.
    reading = engine.execution_options(isolation_level="READ COMMITTED")
    with reading.connect() as connection:
        connection.execute(select(queue.id).where(queue.id.in_(ids)).with_for_update()).all()
        yield


@purging
def test_no_more_than_one_chunk_is_purged_between_two_polls(
    engine: Engine, make_old_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_old_queue()
    add_acked(engine, queue, 3_000)
    subscriber = subscribe(queue)
    with Statements(queue.__table__) as statements:
        eventually(lambda: not ids_of(engine, queue.__table__), within=30)
        polls_and_purges = [kind for kind in statements.kinds if kind in ("poll", "DELETE")]
    assert polls_and_purges.count("DELETE") >= 6
    assert ("DELETE", "DELETE") not in pairwise(polls_and_purges)
    assert subscriber.get(0) is None


@purging
def test_messages_flow_while_a_backlog_is_purged(
    engine: Engine, make_old_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_old_queue()
    add_acked(engine, queue, 30_000)
    subscriber = subscribe(queue)
    handled, left = 0, count_of(engine, queue.__table__)
    while left > 1_000 and handled < 200:
        enqueue(engine, queue())
        ack(engine, subscriber.get(20))
        handled += 1
        left = count_of(engine, queue.__table__) - handled
    assert handled > 5


@purging
@pytest.mark.parametrize("layout", ["portable", "minimal", "classic"])
def test_every_layout_is_purged(
    engine: Engine, make_old_queue: MakeQueue, subscribe: Subscribe, layout: Layout
) -> None:
    queue = make_old_queue(layout=layout)
    long_ago = clock.now() - clock.to_nanoseconds(3600)
    subscribe(queue)
    acked = [queue() for _ in range(40)]
    enqueue(engine, queue(id=1), *acked)
    table = queue.__table__
    with engine.begin() as connection:
        old = table.update().where(table.c.id != 1)
        connection.execute(old.values(time_acked=long_ago, time_next=None))
    eventually(lambda: ids_of(engine, table) == {1})


@purging
@pytest.mark.parametrize("deferred", [False, True])
def test_a_message_that_is_referred_to_keeps_no_other_from_being_purged(
    engine: Engine,
    referred: Any,
    subscribe: Subscribe,
    backend: Backend,
    deferred: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purge, "RETRY_AFTER", 10.0)
    if deferred and backend.server is not None:
        pytest.skip("InnoDB checks foreign keys at once")
    queue, audit = referred(**({"deferrable": True, "initially": "DEFERRED"} if deferred else {}))
    ids = add_acked(engine, queue, 700)
    kept = [*ids[::100], *ids[250:270], ids[-1]]
    refer(engine, audit, kept)
    events: list[Event] = []
    subscriber = subscribe(queue, on_event=events.append)
    eventually(lambda: ids_of(engine, queue.__table__) == set(kept), within=60)
    enqueue(engine, queue())
    assert subscriber.get(20) is not None
    assert not any(isinstance(event, Reconnecting) for event in events)
    [warning, *_] = [r.getMessage() for r in caplog.records if "can't be purged" in r.getMessage()]
    assert audit.name in warning
    assert f"fk_{queue.__tablename__}" in warning
    assert "ON DELETE CASCADE" in warning


@purging
def test_where_every_message_is_referred_to_the_purge_comes_to_the_others_meanwhile(
    engine: Engine, referred: Any, subscribe: Subscribe, caplog: pytest.LogCaptureFixture
) -> None:
    queue, audit = referred()
    ids = add_acked(engine, queue, 1_000)
    refer(engine, audit, ids[:-10])
    subscriber = subscribe(queue)
    handled = 0
    while count_of(engine, queue.__table__) - handled > 990:
        enqueue(engine, queue())
        ack(engine, subscriber.get(20))
        handled += 1
        assert handled < 1_000
    assert handled > 5
    assert caplog.text.count("can't be purged") == 1


@purging
def test_what_could_not_be_purged_is_tried_again(
    engine: Engine, referred: Any, subscribe: Subscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "RETRY_AFTER", 1.0)
    queue, audit = referred()
    ids = add_acked(engine, queue, 20)
    refer(engine, audit, ids[:3])
    subscribe(queue)
    eventually(lambda: ids_of(engine, queue.__table__) == set(ids[:3]))
    with engine.begin() as connection:
        connection.execute(audit.delete())
    eventually(lambda: not ids_of(engine, queue.__table__))


@row_locking
def test_the_purge_does_not_wait_for_rows_that_are_locked(
    engine: Engine, make_old_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_old_queue()
    ids = add_acked(engine, queue, 1_000)
    with locked(engine, queue, ids[5:15]):
        subscriber = subscribe(queue)
        eventually(lambda: ids_of(engine, queue.__table__) == set(ids[5:15]), within=40)
        enqueue(engine, queue())
        assert subscriber.get(20) is not None
    eventually(lambda: len(ids_of(engine, queue.__table__)) == 1)


@row_locking
def test_the_purge_waits_only_a_moment_for_locked_rows_that_refer_to_messages(
    engine: Engine, referred: Any, subscribe: Subscribe
) -> None:
    queue, audit = referred(ondelete="CASCADE")
    ids = add_acked(engine, queue, 600)
    refer(engine, audit, ids[:1])
    with engine.begin() as connection:
        connection.execute(select(audit).with_for_update()).all()
        events: list[Event] = []
        subscriber = subscribe(queue, on_event=events.append)
        eventually(lambda: len(ids_of(engine, queue.__table__)) < 200, within=40)
        started = time.monotonic()
        enqueue(engine, queue())
        assert subscriber.get(20) is not None
        assert time.monotonic() - started < 3
        assert not any(isinstance(event, Reconnecting) for event in events)


@pytest.mark.parametrize("backend", PURGING[:1], indirect=True, ids=lambda b: b.name)
def test_an_idle_subscriber_needs_no_write_lock(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """In SQLite one connection at a time may write."""
    queue = make_queue(poller_interval=60)
    events: list[Event] = []
    subscriber = subscribe(queue, on_event=events.append)
    assert subscriber.get(0.2) is None
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with Statements(queue.__table__) as statements:
            eventually(lambda: statements.kinds.count("poll") > 1)
        connection.rollback()
    assert not events
