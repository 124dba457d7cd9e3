"""Periodic messages: each tick is enqueued once, whoever schedules it, and whatever fails."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, Table, create_engine, delete, event, inspect, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, sessionmaker

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidArgumentType,
    InvalidQueue,
    MessageQueueMixin,
    Periodic,
    QueueNotFound,
    Scheduler,
    Subscriber,
    Topic,
    Worker,
    clock,
)
from sqla_vitess_messages.aio import AsyncScheduler, AsyncSubscriber, AsyncWorker
from sqla_vitess_messages.periodic import progress
from sqla_vitess_messages.table.ticks import TICKS
from tests.async_adapter import LoopThread
from tests.backends import BACKENDS, Backend, async_url, eventually

ONE_EACH = [
    backend
    for backend in BACKENDS
    if backend.name in ("sqlite", "mysql", "mariadb", "vitess", "sqlite-asyncio", "vitess-asyncio")
]
"""Each database, with an asyncio driver too. Transports make no difference to schedulers."""

pytestmark = pytest.mark.parametrize(
    "backend", ONE_EACH, indirect=True, ids=lambda backend: backend.name
)

OFTEN = timedelta(seconds=0.2)


class AsyncSchedulerAdapter:
    """Has the interface of Scheduler, for an AsyncScheduler in an event loop in a thread."""

    def __init__(self, engine: Engine, driver: str, periodic: list[Periodic]) -> None:
        self._loop = LoopThread()
        self._engine = create_async_engine(async_url(engine.url, driver))
        self.scheduler = AsyncScheduler(async_sessionmaker(self._engine), periodic)

    def start(self) -> None:
        self._loop.call(self.scheduler.start())

    def stop(self) -> None:
        try:
            self._loop.call(self.scheduler.stop())
            self._loop.call(self._engine.dispose())
        finally:
            self._loop.end()


class Schedulers:
    """A queue for periodic messages, and schedulers on its database."""

    def __init__(
        self, engine: Engine, backend: Backend, make_queue: Callable[..., type[Any]]
    ) -> None:
        self.engine = engine
        self.backend = backend
        self.queue = make_queue()
        self.name = f"test {secrets.token_hex(6)}"
        self.ticks: list[datetime] = []
        self._started: list[Any] = []

    def make(self, tick: datetime) -> Any:
        """Return the message of a tick."""
        self.ticks.append(tick)
        return self.queue(body=tick.isoformat())

    def periodic(
        self, schedule: Any = OFTEN, factory: Callable[[datetime], Any] | None = None, **kw: Any
    ) -> Periodic:
        return Periodic(self.name, schedule, factory or self.make, **kw)

    def scheduler(self, *periodic: Periodic) -> Any:
        """Return a scheduler that isn't started."""
        given = list(periodic) or [self.periodic()]
        if self.backend.driver is None:
            return Scheduler(sessionmaker(self.engine), given)
        return AsyncSchedulerAdapter(self.engine, self.backend.driver, given)

    def start(self, *periodic: Periodic) -> Any:
        scheduler = self.scheduler(*periodic)
        scheduler.start()
        self._started.append(scheduler)
        return scheduler

    def stop(self) -> None:
        while self._started:
            self._started.pop().stop()

    def bodies(self) -> list[str]:
        with Session(self.engine) as session:
            return sorted(session.scalars(select(self.queue.body)))

    def last(self) -> int | None:
        """Return the last tick that the database knows of, in nanoseconds."""
        with self.engine.connect() as connection:
            return connection.scalar(
                select(TICKS.c.last_tick).where(TICKS.c.id == self.periodic()._id)
            )

    def now(self) -> int:
        """Return the time of the database's clock."""
        with self.engine.connect() as connection:
            return connection.scalar(select(clock.database_now()))

    def set_last(self, ago: float) -> None:
        """Set the last tick to a time ago, as if nobody had scheduled since."""
        last = self.now() - clock.to_nanoseconds(ago)
        self.start().stop()
        self._started.clear()
        with self.engine.begin() as connection:
            connection.execute(delete(self.queue.__table__))
            connection.execute(
                update(TICKS).where(TICKS.c.id == self.periodic()._id).values(last_tick=last)
            )


@pytest.fixture
def schedulers(
    engine: Engine,
    backend: Backend,
    make_queue: Callable[..., type[Any]],
    ticks_table: Table,
) -> Iterator[Schedulers]:
    schedulers = Schedulers(engine, backend, make_queue)
    yield schedulers
    schedulers.stop()
    # The other tests on this server go on to use the table.
    metadata = schedulers.queue.metadata
    if TICKS.name in metadata.tables:
        metadata.remove(metadata.tables[TICKS.name])
    with engine.begin() as connection:
        connection.execute(delete(TICKS).where(TICKS.c.id == schedulers.periodic()._id))


def every(interval: timedelta, bodies: list[str]) -> bool:
    """Return whether bodies are ticks of which none is missing and none comes twice."""
    times = [datetime.fromisoformat(body) for body in bodies]
    return all(b - a == interval for a, b in itertools.pairwise(times))


def test_each_tick_is_enqueued_once_by_several_schedulers(schedulers: Schedulers) -> None:
    for _ in range(3):
        schedulers.start()
    eventually(lambda: len(schedulers.bodies()) >= 10, within=60)
    schedulers.stop()
    bodies = schedulers.bodies()
    assert every(OFTEN, bodies), bodies


def test_ticks_are_aware_times_in_the_zone(schedulers: Schedulers) -> None:
    schedulers.start(schedulers.periodic(timezone="Europe/Berlin"))
    eventually(lambda: schedulers.ticks, within=30)
    schedulers.stop()
    assert str(schedulers.ticks[0].tzinfo) == "Europe/Berlin"
    assert abs(schedulers.ticks[0].timestamp() - schedulers.now() / 1e9) < 60


def test_a_purged_message_is_not_enqueued_again(schedulers: Schedulers) -> None:
    schedulers.start(schedulers.periodic(timedelta(days=1)))
    schedulers.stop()
    first = schedulers.last()
    assert first is not None
    schedulers.set_last(timedelta(days=1).total_seconds())
    for _ in range(2):
        schedulers.start(schedulers.periodic(timedelta(days=1), catch_up=timedelta(days=2)))
        eventually(lambda: schedulers.ticks, within=30)
        schedulers.stop()
        with schedulers.engine.begin() as connection:
            connection.execute(delete(schedulers.queue.__table__))
    time.sleep(0.5)
    assert len(schedulers.ticks) == 1
    assert schedulers.bodies() == []


def test_the_first_start_ever_makes_up_nothing(schedulers: Schedulers) -> None:
    schedulers.start(schedulers.periodic(timedelta(hours=1), catch_up=timedelta(days=9)))
    eventually(schedulers.last, within=30)
    schedulers.stop()
    assert schedulers.ticks == []


def test_of_the_missed_ticks_the_last_one_is_made_up_for(schedulers: Schedulers) -> None:
    schedulers.set_last(600)
    before = schedulers.now()
    schedulers.start(schedulers.periodic(timedelta(seconds=100)))
    eventually(schedulers.bodies, within=30)
    schedulers.stop()
    [tick] = schedulers.ticks[:1]
    age = before / 1e9 - tick.timestamp()
    assert -1 <= age <= 100
    assert len(schedulers.ticks) <= 2  # The next one may have become due.


def test_a_missed_tick_is_not_made_up_for_if_it_is_too_old(schedulers: Schedulers) -> None:
    schedulers.set_last(86_400)
    minute = timedelta(seconds=30)
    now = clock.to_datetime(schedulers.now())
    # Its last tick was half an interval ago, or longer.
    interval = next(
        interval
        for seconds in range(7200, 9000, 7)
        if timedelta(hours=1)
        < (now - datetime(1970, 1, 1, tzinfo=UTC)) % (interval := timedelta(seconds=seconds))
        < interval - minute
    )
    schedulers.start(schedulers.periodic(interval, catch_up=timedelta(minutes=30)))
    time.sleep(1)
    schedulers.stop()
    assert schedulers.ticks == []
    schedulers.start(schedulers.periodic(interval, catch_up=timedelta(hours=3)))
    eventually(schedulers.bodies, within=30)
    schedulers.stop()
    assert len(schedulers.ticks) == 1


def test_a_tick_missed_a_moment_ago_is_left_to_others_for_a_while(
    schedulers: Schedulers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 1.0)
    schedulers.set_last(10)
    started = time.monotonic()
    schedulers.start(schedulers.periodic(timedelta(seconds=2)))
    eventually(schedulers.bodies, within=30)
    assert time.monotonic() - started >= 1
    schedulers.stop()
    bodies = schedulers.bodies()
    assert every(timedelta(seconds=2), bodies), bodies  # Not those of ten seconds.
    assert len(bodies) <= 2 + (time.monotonic() - started) / 2


def test_ticks_that_are_late_while_the_database_is_away_are_enqueued_in_order(
    schedulers: Schedulers, backend: Backend
) -> None:
    if backend.driver is not None:
        pytest.skip("an event loop must not be blocked")
    is_away = threading.Event()

    def refuse(*_event: Any) -> None:
        if is_away.is_set():
            raise OSError("away")

    schedulers.start()
    eventually(schedulers.bodies, within=30)
    event.listen(schedulers.engine, "before_cursor_execute", refuse)
    is_away.set()
    time.sleep(2)
    is_away.clear()
    count = len(schedulers.bodies())
    eventually(lambda: len(schedulers.bodies()) >= count + 12, within=30)
    schedulers.stop()
    assert every(OFTEN, schedulers.bodies())


def test_a_factory_that_fails_is_called_again_and_holds_up_no_other(
    schedulers: Schedulers, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [LookupError("no address"), FileNotFoundError("no file"), SystemExit("no config")]
    errors.append(KeyboardInterrupt())
    attempts: dict[int, list[datetime]] = {number: [] for number in range(len(errors))}

    def broken(number: int, tick: datetime) -> Any:
        attempts[number].append(tick)
        if len(attempts[number]) < 2:
            raise errors[number]
        return schedulers.queue(body="recovered")

    others = [
        Periodic(f"{schedulers.name} {number}", timedelta(seconds=5), partial(broken, number))
        for number in attempts
    ]
    schedulers.start(schedulers.periodic(), *others)
    good: list[str] = []

    def is_done() -> bool:
        bodies = schedulers.bodies()
        good[:] = [body for body in bodies if body != "recovered"]
        return len(good) > 2 and len(bodies) - len(good) >= len(errors)

    eventually(is_done, within=60)
    schedulers.stop()
    assert all(ticks[0] == ticks[1] for ticks in attempts.values())
    assert "LookupError: no address" in caplog.text
    assert "FileNotFoundError: no file" in caplog.text
    assert "wait for the database" not in caplog.text
    assert every(OFTEN, good)


def test_a_tick_and_its_message_commit_together_or_not_at_all(schedulers: Schedulers) -> None:
    failed: list[datetime] = []

    def too_long(tick: datetime) -> Any:
        failed.append(tick)
        return [
            schedulers.queue(body="first"),
            schedulers.queue(id=1, body="x"),
            schedulers.queue(id=1, body="x"),
        ]

    schedulers.start(schedulers.periodic(timedelta(seconds=1), too_long))
    eventually(lambda: failed, within=30)
    last = schedulers.last()
    assert last is not None
    eventually(lambda: len(failed) > 1, within=30)
    schedulers.stop()
    assert schedulers.last() == last < clock.from_datetime(failed[0], "tick")
    assert schedulers.bodies() == []


def test_factories_return_several_messages_events_or_none(schedulers: Schedulers) -> None:
    class Happened(Topic):
        number: Mapped[int]

    base = type("Base", (DeclarativeBase,), {})
    abstract = type("Abstract", (Happened, base), {"__abstract__": True})
    body = {"__tablename__": f"queue_{secrets.token_hex(6)}", "__module__": __name__}
    queue: Any = type("Queue", (MessageQueueMixin, abstract), body)
    queue.__table__.create(schedulers.engine)
    returned = iter([None, [schedulers.queue(body="a"), Happened(number=1)], Happened(number=2)])
    try:
        schedulers.start(schedulers.periodic(factory=lambda _tick: next(returned, None)))

        def numbers() -> list[int]:
            with Session(schedulers.engine) as session:
                return sorted(session.scalars(select(queue.number)))

        eventually(lambda: numbers() == [1, 2], within=30)
        assert schedulers.bodies() == ["a"]
    finally:
        schedulers.stop()
        queue.__table__.drop(schedulers.engine)


def test_a_tick_is_skipped_as_long_as_the_message_before_is_unsettled(
    schedulers: Schedulers, make_queue: Callable[..., type[Any]]
) -> None:
    queue = make_queue(unique_by="body")
    made: list[datetime] = []

    def make(tick: datetime) -> Any:
        made.append(tick)
        return queue(body="poll")

    schedulers.start(schedulers.periodic(factory=make, if_exists="skip"))
    eventually(lambda: len(made) > 3, within=60)
    schedulers.stop()
    with Session(schedulers.engine) as session:
        assert session.scalars(select(queue.body)).all() == ["poll"]
    queue.metadata.remove(queue.metadata.tables[TICKS.name])


def test_a_wrong_return_value_is_logged(
    schedulers: Schedulers, caplog: pytest.LogCaptureFixture
) -> None:
    schedulers.start(schedulers.periodic(factory=lambda _tick: "text"))
    eventually(lambda: "expected a message or an event" in caplog.text, within=30)


def test_clocks_of_processes_make_no_difference(
    schedulers: Schedulers, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.server is None:
        pytest.skip("SQLite has the clock of the process")
    hours = iter([0, 3, -3])
    for _ in range(3):
        shift = next(hours) * 3_600_000_000_000
        monkeypatch.setattr(clock, "wall_clock", lambda shift=shift: time.time_ns() + shift)
        count = len(schedulers.bodies())
        schedulers.start()
        eventually(lambda count=count: len(schedulers.bodies()) >= count + 3, within=60)
    schedulers.stop()
    bodies = schedulers.bodies()
    assert every(OFTEN, bodies), bodies
    assert abs(datetime.fromisoformat(bodies[0]).timestamp() - time.time()) < 600


def test_a_clock_that_is_set_back_repeats_no_tick(
    schedulers: Schedulers, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    schedulers.set_last(-7200)
    with caplog.at_level(logging.WARNING):
        schedulers.start(schedulers.periodic(timedelta(seconds=1)))
        eventually(lambda: "is ahead of the database's clock" in caplog.text, within=30)
        time.sleep(2)
        schedulers.stop()
    assert schedulers.ticks == []


def test_a_worker_schedules_beside_its_work(schedulers: Schedulers, backend: Backend) -> None:
    handled: list[str] = []
    if backend.driver is None:
        subscriber = Subscriber(schedulers.queue, schedulers.engine, **backend.options)
        sessions = sessionmaker(schedulers.engine)
        with Worker(
            subscriber,
            lambda message, _session: handled.append(message.body),
            sessions,
            periodic=[schedulers.periodic()],
        ):
            eventually(lambda: len(handled) >= 5, within=60)
    else:
        asyncio.run(run_async_worker(schedulers, backend, handled))
    count = len(schedulers.bodies())
    assert every(OFTEN, sorted(handled))
    time.sleep(0.6)
    assert len(schedulers.bodies()) == count


async def run_async_worker(schedulers: Schedulers, backend: Backend, handled: list[str]) -> None:
    async def handle(message: Any, _session: Any) -> None:
        handled.append(message.body)

    url = async_url(schedulers.engine.url, backend.driver or "")
    engine = create_async_engine(url)
    subscriber: Any = AsyncSubscriber(schedulers.queue, url, **backend.options)
    periodic = [schedulers.periodic()]
    async with AsyncWorker(subscriber, handle, async_sessionmaker(engine), periodic=periodic):
        for _ in range(600):
            if len(handled) >= 5:
                break
            await asyncio.sleep(0.1)
    await engine.dispose()
    assert len(handled) >= 5


def test_run_ends_when_it_is_asked_to(schedulers: Schedulers, backend: Backend) -> None:
    scheduler = schedulers.scheduler()
    done: list[Any] = []
    if backend.driver is None:
        running = threading.Thread(target=lambda: done.append(scheduler.run()))
        running.start()
        eventually(schedulers.bodies, within=30)
        scheduler.request_stop()
        running.join(30)
    else:
        future = scheduler._loop.submit(scheduler.scheduler.run())
        eventually(schedulers.bodies, within=30)
        scheduler.scheduler.request_stop()
        done.append(future.result(30))
        scheduler.stop()
    assert done == [True]
    count = len(schedulers.bodies())
    time.sleep(0.6)
    assert len(schedulers.bodies()) == count


def test_a_cancelled_scheduler_ends(schedulers: Schedulers, backend: Backend) -> None:
    if backend.driver is None:
        pytest.skip("only tasks can be cancelled")
    scheduler = schedulers.scheduler()
    future = scheduler._loop.submit(scheduler.scheduler.run())
    eventually(schedulers.bodies, within=30)
    future.cancel()
    time.sleep(1)
    count = len(schedulers.bodies())
    time.sleep(0.6)
    assert len(schedulers.bodies()) == count
    scheduler.stop()


def test_a_scheduler_may_be_started_again(schedulers: Schedulers) -> None:
    scheduler = Scheduler(sessionmaker(schedulers.engine), [schedulers.periodic()])
    for _ in range(2):
        count = len(schedulers.bodies())
        with scheduler:
            scheduler.start()  # It has begun already.
            eventually(lambda count=count: len(schedulers.bodies()) > count, within=30)
    assert scheduler.stop()
    assert schedulers.name in repr(scheduler)


def test_other_names_have_their_own_ticks(schedulers: Schedulers) -> None:
    upper = Periodic(schedulers.name.upper(), timedelta(days=1), schedulers.make)
    schedulers.start(schedulers.periodic(), upper)
    eventually(schedulers.bodies, within=30)
    schedulers.stop()
    assert every(OFTEN, schedulers.bodies())
    with schedulers.engine.begin() as connection:
        deleted = connection.execute(delete(TICKS).where(TICKS.c.id == upper._id)).rowcount
    assert deleted == 1
    assert upper._id != schedulers.periodic()._id


def test_queues_on_another_engine_are_refused(
    schedulers: Schedulers, tmp_path: Any, caplog: pytest.LogCaptureFixture, backend: Backend
) -> None:
    if backend.driver is not None:
        pytest.skip("the same code")
    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    sessions = sessionmaker(schedulers.engine, binds={schedulers.queue: other})
    with Scheduler(sessions, [schedulers.periodic()]):
        eventually(lambda: "can't commit with the data" in caplog.text, within=30)
    with pytest.raises(InvalidArgument, match="no engine for the table 'message_queue_ticks'"):
        Scheduler(sessionmaker(binds={schedulers.queue: other}), [schedulers.periodic()]).start()
    autocommit = schedulers.engine.execution_options(isolation_level="AUTOCOMMIT")
    with pytest.raises(InvalidArgument, match="autocommit"):
        Scheduler(sessionmaker(autocommit), [schedulers.periodic()]).start()
    other.dispose()


class TestArguments:
    """What needs no database, or one of its own."""

    def test_wrong_ones_are_refused(self, backend: Backend) -> None:
        if backend.name != "sqlite":
            pytest.skip("makes no difference")
        one = Periodic("one", OFTEN, lambda _tick: None)
        for sessions, periodic, text in (
            (sessionmaker(), [5], "periodic: 5"),
            (sessionmaker(), 5, "periodic: 5"),
            (5, [one], "session_factory=5"),
        ):
            with pytest.raises(InvalidArgumentType, match=text):
                Scheduler(sessions, periodic)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="several have the name 'one'"):
            Scheduler(sessionmaker(), [one, Periodic("one", OFTEN, lambda _tick: None)])
        with pytest.raises(InvalidArgument, match=r"periodic=\[\]"):
            Scheduler(sessionmaker(), [])

    def test_the_table_is_made_with_the_queues_once_it_is_used(
        self, backend: Backend, tmp_path: Any
    ) -> None:
        if backend.name != "sqlite":
            pytest.skip("makes no difference")
        engine = create_engine(f"sqlite:///{tmp_path}/new.db")

        def define(name: str) -> Any:
            base: Any = type("Base", (DeclarativeBase,), {})
            type("Queue", (MessageQueueMixin, base), {"__tablename__": name})
            return base

        early = define("early")
        early.metadata.create_all(engine)
        assert not inspect(engine).has_table(TICKS.name)
        one = Periodic("one", OFTEN, lambda _tick: None)
        with pytest.raises(QueueNotFound, match=r"no table 'message_queue_ticks'.*create_all"):
            Scheduler(sessionmaker(engine), [one]).start()
        late = define("late")
        for base in (early, late):
            base.metadata.create_all(engine)
            assert inspect(engine).has_table(TICKS.name)
            base.metadata.drop_all(engine)
            assert not inspect(engine).has_table(TICKS.name)
        taken: Any = type("Base", (DeclarativeBase,), {})
        Table(TICKS.name, taken.metadata)
        with pytest.raises(InvalidQueue, match="the name belongs to"):
            type("Queue", (MessageQueueMixin, taken), {"__tablename__": "queue"})
        engine.dispose()
