"""The behaviour of a subscriber: column types, limits, opening and closing."""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from pymysql.err import OperationalError
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Engine,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    event,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, Session, deferred, mapped_column
from sqlalchemy.pool import Pool

from sqla_vitess_messages import QueueNotFound, QueueOptions, Subscriber, SubscriberClosed
from sqla_vitess_messages.events import Delivered, Reconnected, Reconnecting, StreamSilent
from sqla_vitess_messages.receiving.batcher import (
    Change,
    PendingSettlement,
    SettlementBatcher,
    settle_together,
)
from sqla_vitess_messages.rows.lease import lease_of
from sqla_vitess_messages.runtime import ThreadRuntime
from sqla_vitess_messages.transports.engines import dedicated_engine
from sqla_vitess_messages.transports.leaser import ShardLeaser
from sqla_vitess_messages.transports.mysql_stream import StreamTransport
from tests.backends import (
    BACKENDS,
    EVERYWHERE,
    STREAMS,
    Backend,
    ack,
    enqueue,
    eventually,
    make_queue_class,
    row,
)

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Reversed(TypeDecorator[str]):
    impl = String(50)
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: object) -> str | None:
        return value and value[::-1]

    def process_result_value(self, value: str | None, _dialect: object) -> str | None:
        return value and value[::-1]


def test_instances_come_detached_fully_loaded_and_decoded(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    columns: dict[str, tuple[Any, Any, Any]] = {
        "json": (Mapped[Any], mapped_column(JSON), {"a": [1, None, "ü"]}),
        "moment": (Mapped[datetime], mapped_column(DateTime), datetime(2026, 2, 3, 4, 5, 6)),
        "colour": (Mapped[Colour], mapped_column(Enum(Colour)), Colour.GREEN),
        "reversed": (Mapped[str], mapped_column(Reversed()), "desserts"),
        "blob": (Mapped[bytes], mapped_column(LargeBinary), bytes(range(256))),
        "price": (Mapped[Decimal], mapped_column(Numeric(10, 2)), Decimal("12.30")),
        "flag": (Mapped[bool], mapped_column(Boolean), True),
        "missing": (Mapped[int | None], mapped_column(Integer), None),
        "long": (Mapped[str], deferred(mapped_column(Text)), "ü" * 20_000),
        "user": (Mapped[str], mapped_column("key", String(10)), "renamed"),
    }
    queue = make_queue(
        ack_wait=10,
        attributes={
            "__annotations__": {name: annotation for name, (annotation, *_) in columns.items()},
            **{name: column for name, (_, column, _) in columns.items()},
        },
    )
    values = {name: value for name, (*_, value) in columns.items()}
    enqueue(engine, queue(priority=7, **values))
    message = subscribe(queue).get(20)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    assert {name: getattr(message, name) for name in values} == values
    assert (message.priority, message.epoch, message.time_acked) == (7, 0, None)
    assert message.time_created == message.time_scheduled
    assert not statements
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add(message)
        message.colour = Colour.RED
        message.ack(session)
    assert row(engine, message).colour is Colour.RED


def test_nothing_is_connected_before_open(url: str, queue: type[Any], backend: Backend) -> None:
    connected: list[object] = []

    @event.listens_for(Pool, "connect")
    def record(connection: object, _record: object) -> None:
        connected.append(connection)

    try:
        subscriber = Subscriber(queue, url, **backend.options)
        with pytest.raises(SubscriberClosed):
            subscriber.get(0)
        assert not connected
        with subscriber:
            assert connected
    finally:
        event.remove(Pool, "connect", record)
    with pytest.raises(SubscriberClosed):
        subscriber.get(0)


def test_a_subscriber_opens_again_after_close(
    engine: Engine, queue: type[Any], url: str, backend: Backend
) -> None:
    subscriber = Subscriber(queue, url, **backend.options)
    for _ in range(2):
        with subscriber:
            enqueue(engine, queue())
            ack(engine, subscriber.get(20))


def test_an_engine_is_copied_and_not_used(
    engine: Engine, make_queue: MakeQueue, backend: Backend
) -> None:
    queue = make_queue()
    enqueue(engine, queue())
    engine.dispose()
    connects: list[object] = []
    errors: list[ExceptionContext] = []
    with Subscriber(queue, engine, **backend.options) as subscriber:
        event.listen(engine, "connect", lambda *arguments: connects.append(arguments))
        event.listen(engine, "handle_error", errors.append)
        message = subscriber.get(20)
        assert not connects
        with pytest.raises(DBAPIError), engine.connect() as connection:
            connection.execute(text("SELECT nonsense"))
    # A stream's own engines handle their errors themselves.
    (error,) = [error for error in errors if error.engine is engine]
    assert error.invalidate_pool_on_disconnect
    ack(engine, message)


def test_a_missing_table_is_a_clear_error_at_open(url: str, backend: Backend) -> None:
    queue = make_queue_class(QueueOptions())
    subscriber = Subscriber(queue, url, **backend.options)
    with pytest.raises(QueueNotFound, match="create_all"):
        subscriber.open()


def test_a_table_that_is_no_queue_is_a_clear_error_at_open(
    engine: Engine, url: str, backend: Backend
) -> None:
    queue = make_queue_class(QueueOptions())
    plain = Table(queue.__tablename__, MetaData(), Column("id", Integer, primary_key=True))
    plain.create(engine, checkfirst=False)

    def error() -> str:
        with pytest.raises(QueueNotFound) as raised:
            Subscriber(queue, url, **backend.options).open()
        return str(raised.value)

    try:
        # vtgate learns of a new table asynchronously.
        eventually(lambda: "lacks the columns time_scheduled" in error())
    finally:
        plain.drop(engine, checkfirst=False)


def test_a_table_without_its_indexes_is_a_clear_error_at_open(
    engine: Engine, queue: type[Any], backend: Backend, subscribe: Subscribe
) -> None:
    if backend.server is None or backend.server == "sharded":
        return  # SQLite has no FORCE INDEX, and a sharded keyspace learns of the change late.
    with engine.begin() as connection:
        connection.execute(text(f"DROP INDEX poller_idx ON {queue.__tablename__}"))
    with pytest.raises(QueueNotFound, match="lacks the indexes poller_idx"):
        subscribe(queue)


def test_max_concurrency_bounds_what_is_handed_out(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, *(queue() for _ in range(10)))
    subscriber = subscribe(queue, max_concurrency=3)
    received = [subscriber.get(20) for _ in range(3)]
    assert subscriber.get(1.5) is None
    ack(engine, received[0])
    assert subscriber.get(20) is not None
    assert subscriber.get(0.3) is None


def test_a_rolled_back_settlement_keeps_its_place(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue, max_concurrency=1)
    message = subscriber.get(20)
    with Session(engine) as session:
        message.ack(session)
        session.rollback()
    assert subscriber.get(0.5) is None
    with Session(engine) as session, session.begin(), session.begin_nested() as savepoint:
        message.ack(session)
        savepoint.rollback()
    assert subscriber.get(0.5) is None
    ack(engine, message)
    assert subscriber.get(20) is not None


def test_an_expired_lease_frees_its_place(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue, max_concurrency=1)
    enqueue(engine, queue())
    assert subscriber.get(20).attempts == 0
    # A stream may bring it before its place is free. Then it was released, at a later epoch.
    assert subscriber.get(20).attempts == 1


def test_what_waited_too_long_in_the_subscriber_is_not_handed_out(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue, max_concurrency=10)
    enqueue(engine, *(queue() for _ in range(5)))
    first = subscriber.get(20)
    eventually(lambda: row(engine, first).epoch == 1)
    time.sleep(1.2)  # Longer than ack_wait: the leases of the buffered messages have expired.
    ends_at = time.monotonic() + 20
    seen = set()
    while len(seen) < 5 and time.monotonic() < ends_at:
        message = subscriber.get(1)
        if message is not None:
            assert row(engine, message).epoch <= message.epoch + 1
            ack(engine, message)
            seen.add(message.id)
    assert len(seen) == 5


def test_close_gives_back_what_nobody_got(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=300, min_backoff=300)
    enqueue(engine, *(queue() for _ in range(40)))
    first = subscribe(queue, max_concurrency=20)
    got = first.get(20)
    started = time.monotonic()
    first.close()
    assert time.monotonic() - started < 2
    second = subscribe(queue, max_concurrency=50)
    others: set[int] = set()
    eventually(lambda: others.update(m.id for m in second.get_many(50, 1)) or len(others) == 39)
    assert got.id not in others


def test_close_is_quick_in_an_idle_stream_and_leaves_nothing(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=300, min_backoff=300)
    before = set(threading.enumerate())
    idle = [subscribe(queue) for _ in range(2)]
    time.sleep(0.3)
    started = time.monotonic()
    for subscriber in idle:
        subscriber.close()
    assert time.monotonic() - started < 4
    # grpc.aio has one polling thread for the whole process, which stays.
    eventually(
        lambda: {t for t in threading.enumerate() if "_poll_wrapper" not in t.name} <= before
    )
    # A stream that the server still considers open would get its share, and keep it for ack_wait.
    last = subscribe(queue)
    enqueue(engine, *(queue() for _ in range(60)))
    got: set[int] = set()
    eventually(lambda: got.update(m.id for m in last.get_many(60, 1)) or len(got) == 60)


def test_close_wakes_those_who_wait(queue: type[Any], subscribe: Subscribe) -> None:
    subscriber = subscribe(queue)
    ended = threading.Event()

    def consume() -> None:
        for _ in subscriber:
            pass
        ended.set()

    threading.Thread(target=consume).start()
    time.sleep(0.1)
    subscriber.close()
    assert ended.wait(2)


def test_a_subscriber_that_is_not_open_is_not_iterated(queue: type[Any], url: str) -> None:
    with pytest.raises(SubscriberClosed, match="is not open"):
        next(iter(Subscriber(queue, url)))


def test_many_threads_share_one_subscriber(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    count = 120
    enqueue(engine, *(queue() for _ in range(count)))
    subscriber = subscribe(queue, max_concurrency=20)
    handled: list[int] = []

    def consume() -> None:
        for message in subscriber:
            ack(engine, message)
            handled.append(message.id)

    threads = [threading.Thread(target=consume) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(handled) >= count, within=40)
    subscriber.close()
    for thread in threads:
        thread.join(5)
    assert len(handled) == len(set(handled)) == count


def test_get_many_returns_what_is_there(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue()
    subscriber = subscribe(queue)
    assert subscriber.get_many(5, timeout=0.1) == []
    enqueue(engine, *(queue() for _ in range(3)))
    got: list[Any] = []
    eventually(lambda: got.extend(subscriber.get_many(5, timeout=5)) or len(got) == 3)


def test_a_timeout_is_in_seconds_or_a_timedelta(queue: type[Any], subscribe: Subscribe) -> None:
    subscriber = subscribe(queue)
    for timeout in (0, -0.5, 0.01, timedelta(milliseconds=10)):
        assert subscriber.get(timeout) is None
        assert subscriber.get_many(5, timeout) == []
        assert subscriber.flush(timeout)
    for call in (subscriber.get, partial(subscriber.get_many, 5), subscriber.flush):
        with pytest.raises(TypeError, match="timeout='1': expected seconds"):
            call("1")


def test_a_password_shows_in_no_log_and_no_repr(
    backend: Backend, url: str, queue: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    if backend.server is None:
        return  # SQLite has none.
    secret = url.replace("@", ":s3cret-word@", 1)
    caplog.set_level(logging.DEBUG)
    subscriber = Subscriber(queue, secret, **backend.options)
    said = ""
    try:
        with subscriber:
            subscriber.get(0.1)
    except Exception as error:  # noqa: BLE001  # MySQL refuses the password, vtgate takes any.
        said = str(error)
    assert "s3cret" not in caplog.text + repr(subscriber) + said


def test_a_commit_in_the_same_process_wakes_a_pull(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, backend: Backend
) -> None:
    if backend.transport in STREAMS or backend.driver is not None:
        return  # A stream is pushed to; for asyncio see test_asyncio.py.
    queue = make_queue()
    subscriber = subscribe(queue)
    subscriber._loop._transport.pause = 600  # Otherwise it would poll again in ten minutes.
    eventually(lambda: not subscriber._loop._poll_now)
    time.sleep(0.3)
    enqueue(engine, queue(body="woke it"))
    message = subscriber.get(10)
    assert message.body == "woke it"

    def is_woken_by(change: Callable[[Session], object]) -> bool:
        subscriber._loop._transport.pause = 600
        time.sleep(0.3)
        with Session(engine) as session, session.begin():
            change(session)
        return subscriber.get(10) is not None

    assert is_woken_by(lambda session: message.retry(session, 0))
    enqueue(engine, queue(deliver_in=600))
    assert is_woken_by(lambda session: queue.run_now(session, queue.state == "scheduled"))


STREAMING = [backend for backend in BACKENDS if backend.transport in STREAMS]


@pytest.mark.parametrize("backend", STREAMING, indirect=True, ids=lambda backend: backend.name)
def test_a_silent_stream_is_noticed_and_pulled_from_until_it_speaks(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    events: list[Any] = []
    # Only the tablet's poller finds messages that become due, and here it polls once an hour.
    queue = make_queue(poller_interval=3600)
    subscriber = subscribe(queue, on_event=events.append)

    def arrives_in(seconds: float, logged: str) -> bool:
        enqueue(engine, queue(deliver_in=seconds))
        assert subscriber.get(20) is not None
        return logged in caplog.text

    eventually(lambda: arrives_in(1, "the stream brings none"), within=60)
    eventually(lambda: arrives_in(0, "the stream brings messages again"))
    emitted = [type(e) for e in events if isinstance(e, (StreamSilent, Reconnected))]
    assert emitted == [StreamSilent, Reconnected]


@pytest.mark.parametrize(
    "backend",
    [backend for backend in EVERYWHERE if backend.transport == "stream"],
    indirect=True,
    ids=lambda backend: backend.name,
)
def test_the_end_of_a_segment_is_no_lost_connection(
    engine: Engine,
    queue: type[Any],
    subscribe: Subscribe,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever way a version of Vitess ends it: by an error, or by dropping the connection."""
    ended: list[float] = []
    read_segment = StreamTransport._read_segment

    def record(transport: StreamTransport[Any], seconds: float) -> None:
        read_segment(transport, seconds)
        ended.append(seconds)

    monkeypatch.setattr(StreamTransport, "_read_segment", record)
    events: list[Any] = []
    subscriber = subscribe(queue, on_event=events.append)
    eventually(lambda: len(ended) >= 5)
    enqueue(engine, queue())
    assert subscriber.get(20) is not None
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [type(event) for event in events] == [Delivered]


@pytest.mark.parametrize("backend", STREAMING[:1], indirect=True, ids=lambda backend: backend.name)
def test_an_error_that_sqlalchemy_does_not_wrap_ends_no_subscriber(
    engine: Engine, queue: type[Any], subscribe: Subscribe, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []
    subscriber = subscribe(queue, on_event=events.append)

    @event.listens_for(
        subscriber._loop._transport._streaming, "set_connection_execution_options", once=True
    )
    def lose(_connection: object, _options: object) -> None:
        raise OperationalError(2013, "Lost connection")  # As when the server has just died.

    eventually(lambda: "trying again" in caplog.text)
    enqueue(engine, queue(body="after it"))
    assert subscriber.get(20).body == "after it"
    expected = [Reconnecting, Reconnected]
    eventually(lambda: [type(e) for e in events if not isinstance(e, Delivered)] == expected)


@pytest.mark.parametrize("action", ["release", "ack"])
@pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in ("mysql", "mariadb", "vitess")],
    indirect=True,
    ids=lambda backend: backend.name,
)
def test_what_a_subscriber_writes_outlives_a_deadlock(
    engine: Engine, queue: type[Any], action: str
) -> None:
    enqueue(engine, *(queue() for _ in range(20)))
    dedicated = dedicated_engine(engine)
    leaser: ShardLeaser[Any] = ShardLeaser(queue, dedicated)
    commit = partial(settle_together, queue, dedicated)
    batcher = SettlementBatcher(commit, ThreadRuntime())
    first, *others = sorted(leaser.lease(20).messages, key=lambda message: message.id)
    last = others.pop()
    columns = queue.__table__.c

    def write() -> None:
        if action == "release":
            leaser.release([first, last])
        else:
            done: Future[None] = Future()
            for message, future in ((first, Future()), (last, done)):
                lease = lease_of(message)
                assert lease is not None
                batcher.add(PendingSettlement(lease, Change("ack"), future))
            done.result(20)

    with engine.connect() as connection:
        # MySQL ends a deadlock by rolling back the transaction that has changed fewer rows.
        ids = [message.id for message in others]
        connection.execute(update(queue).where(columns.id.in_(ids)).values(priority=1))
        lock = select(columns.id).with_for_update()
        connection.execute(lock.where(columns.id == last.id))
        writing = threading.Thread(target=write)
        writing.start()
        time.sleep(0.5)  # By then it has locked the first message, and waits for the last.
        connection.execute(lock.where(columns.id == first.id))
        connection.commit()
    writing.join(20)
    assert not writing.is_alive()
    with engine.connect() as connection:
        stats = queue.stats(connection)
    assert (stats.ready, stats.acked) == ((2, 0) if action == "release" else (0, 2))
    batcher.close()
    dedicated.dispose()
