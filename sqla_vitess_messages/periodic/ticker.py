"""Enqueue periodic messages when they are due: in a thread, or in a task of an event loop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta

from sqlalchemy import Connection, exc, insert, inspect, select, update
from sqlalchemy.orm import Session

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType, QueueNotFound
from ..forking import forget_in_child
from ..logs import get_logger
from ..mixin import MessageQueueMixin
from ..reconnecting import lost_connection_errors, repeat_until_stopped
from ..rows.separately import may_be_an_item
from ..rows.settle import refuse_autocommit
from ..rows.transient import is_transient
from ..runtime import Condition, Runtime, Task
from ..sessions import add_messages, engine_for
from ..shown import shown
from ..table.ticks import TICKS
from ..topics.topic import messages_of
from ..vitess.server import is_vitess
from ..vitess.vschema import is_sharded
from .periodic import Periodic
from .progress import POLL_INTERVAL, Progress

__all__ = ["BeginTransaction", "Ticker"]

log = get_logger(__name__)

BeginTransaction = Callable[[], AbstractContextManager[Session]]
"""Begins a transaction, which commits with the block."""

MAX_PAUSE = 30.0
"""Seconds after which the database's clock is read again, at most."""

FIRST_DELAY, MAX_DELAY = 1.0, 60.0
"""Seconds until a tick is tried again that couldn't be enqueued: doubled each time."""

STOP_TIMEOUT = 10.0
"""Seconds that a running transaction has to end."""

AHEAD = timedelta(minutes=1)
"""By how much the last tick may be ahead of the clock without a warning."""


class _FactoryFailed(Exception):
    """A factory has raised an exception, of any kind, which is the cause of this one."""


class Ticker:
    """Enqueues the messages of several :class:`Periodic`.

    :param begin: begins a transaction.
    :raises InvalidArgument: when two have the same name.
    :raises InvalidArgumentType: when one of them is something else.
    """

    def __init__(self, periodic: Iterable[Periodic], begin: BeginTransaction) -> None:
        self.periodic = _checked(periodic)
        self._begin = begin
        self._errors: tuple[type[Exception], ...] = ()
        self._reset()
        forget_in_child(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._progress = [_Attempts(periodic) for periodic in self.periodic]
        self._stopping = False
        self._runtime: Runtime | None = None
        self._changed: Condition | None = None
        self._task: Task | None = None

    def forget_parent(self) -> None:
        """Be stopped in a process that was forked: the parent has the thread."""
        self._reset()

    @property
    def is_running(self) -> bool:
        """Whether it has begun to enqueue, and has not ended."""
        return self._task is not None and self._task.is_alive

    def prepare(self) -> None:
        """Check the database and the sessions. From then on, each tick has to be enqueued.

        :raises QueueNotFound: when the database lacks the table of the last ticks.
        :raises InvalidArgument: when the sessions or the database don't suit.
        """
        if not self.periodic or self.is_running:
            return
        self._reset()
        self._check()
        _lasts, now = self._read()
        for attempts in self._progress:
            attempts.progress.begin(now)

    def start(self, runtime: Runtime, on_error: Callable[[BaseException], object]) -> None:
        """Begin to enqueue, after :meth:`prepare`. Does nothing if it has begun.

        :param on_error: called with an unexpected error, which has ended it.
        """
        if not self.periodic or self.is_running:
            return
        self._runtime = runtime
        self._changed = runtime.condition(self._lock)

        def run() -> None:
            try:
                self._run()
            except BaseException as error:
                if runtime.is_cancellation(error):
                    raise
                on_error(error)

        self._task = runtime.start(run, "Ticker")

    def request_stop(self) -> None:
        """Enqueue nothing more."""
        with self._lock:
            self._stopping = True
            if self._changed is not None:
                self._changed.notify_all()

    def stop(self) -> bool:
        """Enqueue nothing more, and wait for the end of the running transaction.

        :return: whether it has ended in time.
        """
        self.request_stop()
        task, self._task = self._task, None
        if task is None:
            return True
        has_ended = task.join(STOP_TIMEOUT)
        if not has_ended and task.cancel():
            task.join()
        return has_ended

    def _check(self) -> None:
        with self._begin() as session:
            connection = _connection(session)
            refuse_autocommit(connection, "a periodic message")
            if is_vitess(connection) and is_sharded(connection):
                raise InvalidArgument(
                    "periodic messages: the keyspace is sharded, where a message and the note that "
                    "its tick is done may be in different shards, which don't commit as one. Put "
                    "their queue into an unsharded keyspace; its handler may enqueue in this one"
                )
            if not inspect(connection).has_table(TICKS.name):
                raise QueueNotFound(
                    f"the database has no table {TICKS.name!r}, which remembers the last tick of "
                    "each periodic message. Call Base.metadata.create_all(engine) after the "
                    "Periodic objects are made; or import them in Alembic's env.py, and generate a "
                    "migration with 'alembic revision --autogenerate'"
                )
            self._errors = lost_connection_errors(connection.engine)

    def _run(self) -> None:
        def disconnect(error: BaseException | None) -> None:
            if error is not None and not is_transient(error):
                log.warning("periodic messages wait for the database: %s", error)

        repeat_until_stopped(
            lambda: self._sleep(self._enqueue_due()),
            self._errors,
            is_stopping=lambda: self._stopping,
            sleep=self._sleep,
            disconnect=disconnect,
        )

    def _sleep(self, seconds: float) -> None:
        assert self._changed is not None
        ends_at = time.monotonic() + seconds
        with self._lock:
            while not self._stopping and (remaining := ends_at - time.monotonic()) > 0:
                self._changed.wait(remaining)

    def _enqueue_due(self) -> float:
        """Enqueue everything that is due.

        :return: the seconds until something may be due again.
        """
        read_at = time.monotonic()
        lasts, now = self._read()
        pause = MAX_PAUSE
        for attempts in self._progress:
            delay = attempts.delay
            if delay <= 0:
                delay = self._enqueue_due_of(attempts, lasts[attempts.periodic._id], now)
            pause = min(pause, delay)
        return pause - (time.monotonic() - read_at)

    def _enqueue_due_of(self, attempts: _Attempts, last: int, now: datetime) -> float:
        """Do the due ticks of one of them, and return the seconds until the next one.

        :param last: the last tick that is done, in the database's nanoseconds.
        """
        while not self._stopping:
            attempts.check_clock(clock.to_datetime(last), now)
            due = attempts.progress.due(clock.to_datetime(last), now)
            if due.tick is None:
                return MAX_PAUSE
            if not due.is_due:
                return POLL_INTERVAL if due.tick <= now else (due.tick - now).total_seconds()
            try:
                is_done = self._enqueue(attempts.periodic, last, due.tick)
            except _FactoryFailed as failure:
                return attempts.fail(due.tick, failure.__cause__ or failure)
            except Exception as error:
                if not may_be_an_item(error):
                    raise
                return attempts.fail(due.tick, error)
            if not is_done:
                return 0  # Somebody else has done it.
            attempts.succeed()
            last = clock.from_datetime(due.tick, "tick")
        return 0

    def _enqueue(self, periodic: Periodic, last: int, tick: datetime) -> bool:
        """Enqueue the message of a tick, unless another scheduler has done it.

        :param last: the last tick before.
        """
        with self._begin() as session:
            connection = _connection(session)
            moving = (
                update(TICKS)
                .where(TICKS.c.id == periodic._id, TICKS.c.last_tick == last)
                .values(last_tick=clock.from_datetime(tick, "tick"))
            )
            if connection.execute(moving).rowcount != 1:
                return False
            messages = self._make(periodic, tick)
            for model in dict.fromkeys(map(type, messages)):
                engine_for(session, model, {connection.engine})
            add_messages(session, messages, periodic._if_exists)
        log.debug("periodic message %r of %s enqueued", periodic.name, tick.isoformat())
        return True

    def _make(self, periodic: Periodic, tick: datetime) -> list[MessageQueueMixin]:
        """Return the messages of a tick.

        :raises _FactoryFailed: when its factory raises anything, as that concerns no other.
        """
        assert self._runtime is not None
        try:
            return messages_of(periodic._make(tick), periodic._factory)
        except BaseException as error:
            if self._runtime.is_cancellation(error):
                raise
            raise _FactoryFailed from error

    def _read(self) -> tuple[Mapping[int, int], datetime]:
        """Return the last tick of each, in nanoseconds, and the time, by the database's clock.

        One that is scheduled for the first time begins now.
        """
        reading = select(TICKS.c.id, TICKS.c.last_tick, clock.database_now()).where(
            TICKS.c.id.in_([periodic._id for periodic in self.periodic])
        )
        while True:
            with self._begin() as session:
                rows = _connection(session).execute(reading).all()
            lasts = {row[0]: row[1] for row in rows}
            missing = [periodic for periodic in self.periodic if periodic._id not in lasts]
            if not missing:
                return lasts, clock.to_datetime(rows[0][2])
            for periodic in missing:
                self._insert(periodic)

    def _insert(self, periodic: Periodic) -> None:
        try:
            with self._begin() as session:
                _connection(session).execute(
                    insert(TICKS).values(
                        id=periodic._id, name=periodic.name, last_tick=clock.database_now()
                    )
                )
        except exc.IntegrityError:
            pass  # Another scheduler has done it.


class _Attempts:
    """A periodic message in this scheduler, with the attempts to enqueue it that have failed."""

    def __init__(self, periodic: Periodic) -> None:
        self.periodic = periodic
        self.progress = Progress(periodic)
        self._failures = 0
        self._retry_at = 0.0
        self._has_warned = False

    @property
    def delay(self) -> float:
        """The seconds until the next attempt is allowed; not more than 0 if it is."""
        return self._retry_at - time.monotonic()

    def fail(self, tick: datetime, error: BaseException) -> float:
        """Log an error, and return the seconds until the next attempt."""
        delay = min(FIRST_DELAY * 2.0**self._failures, MAX_DELAY) * random.uniform(0.5, 1)
        log.error(
            "periodic message %r of %s could not be enqueued; it is tried again in %.0f s",
            self.periodic.name, tick.isoformat(), delay, exc_info=error,
        )  # fmt: skip
        self._failures = min(self._failures + 1, 10)
        self._retry_at = time.monotonic() + delay
        return delay

    def succeed(self) -> None:
        """Note that a message was enqueued."""
        self._failures = 0

    def check_clock(self, last: datetime, now: datetime) -> None:
        """Warn if the last tick is ahead of the time: the database's clock was wrong."""
        if last - now > AHEAD and not self._has_warned:
            self._has_warned = True
            log.warning(
                "periodic message %r: its last tick, %s, is ahead of the database's clock, %s; "
                "there is no other before that", self.periodic.name, last.isoformat(),
                now.isoformat(),
            )  # fmt: skip


def _checked(periodic: Iterable[Periodic]) -> list[Periodic]:
    found = list(periodic) if isinstance(periodic, Iterable) else [periodic]
    for one in found:
        if not isinstance(one, Periodic):
            raise InvalidArgumentType(f"periodic: {shown(one)}: expected Periodic objects")
    names = [one.name for one in found]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InvalidArgument(f"periodic: several have the name {shown(twice[0])}")
    return found


def _connection(session: Session) -> Connection:
    """Return the connection of the table of last ticks.

    :raises InvalidArgument: when the session has no engine for it.
    """
    try:
        return session.connection(bind_arguments={"clause": update(TICKS)})
    except exc.UnboundExecutionError as error:
        raise InvalidArgument(
            f"session_factory: its sessions have no engine for the table {TICKS.name!r}; give them "
            "a 'bind', which serves the tables that 'binds' doesn't name"
        ) from error
