"""Helpers for tests of code that enqueues and handles messages, on SQLite in memory.

.. code-block:: python

    def test_sign_up(message_sessions):
        sessions = message_sessions(Base.metadata)
        with sessions.begin() as session:
            sign_up(session, "ada@example.com")
            assert_enqueued(session, Welcome, address="ada@example.com")
        assert len(drain(Welcome, sessions, send_welcome)) == 1

With asyncio, ``await session.run_sync(assert_enqueued, Welcome, address=...)`` checks, and
:func:`sqla_vitess_messages.aio.testing.drain` handles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import inspect, not_, select
from sqlalchemy.orm import Session

from . import clock
from .arguments import check_function, check_model, check_result
from .errors import InvalidArgumentType
from .mixin import MessageQueueMixin
from .receiving import draining
from .receiving.retries import RetryPolicy
from .rows.message import queue_table
from .rows.states import is_dead, is_unsettled
from .sessions import begin_session, sync_session
from .shown import shown
from .table.options import OPTIONS_KEY

__all__ = ["Clock", "assert_enqueued", "drain", "enqueued", "travelling_clock"]

M = TypeVar("M", bound=MessageQueueMixin)


def enqueued(session: Session, model: type[M], **values: Any) -> list[M]:
    """Return the unsettled messages that a session sees, its own uncommitted ones included.

    Acked and dead ones are settled; ``Model.dead(session)`` returns the dead.

    :param session: is flushed first.
    :param model: the queue's class.
    :param values: the values that attributes must have.
    :raises InvalidArgumentType: when the model is no queue's class.
    """
    check_model(model)
    session = sync_session(session)
    session.flush()
    rows = queue_table(model)
    unsettled = select(model).where(is_unsettled(rows), not_(is_dead(rows))).filter_by(**values)
    return list(session.scalars(unsettled.order_by(model.time_next, model.id)))


def assert_enqueued(session: Session, model: type[M], *, count: int = 1, **values: Any) -> list[M]:
    """Raise an AssertionError unless a session sees so many unsettled messages with these values.

    :param session: is flushed first.
    :param model: the queue's class.
    :param count: how many.
    :param values: the values that attributes must have.
    :return: the messages.
    :raises InvalidArgumentType: when the model is no queue's class, or the count no int.
    :raises AssertionError: with a list of the messages that there are.
    """
    if not isinstance(count, int):
        raise InvalidArgumentType(f"count={shown(count)}: expected an int")
    found = enqueued(session, model, **values)
    if len(found) != count:
        there = "".join(f"\n  {_describe(message)}" for message in enqueued(session, model))
        raise AssertionError(
            f"expected {count} of {model.__name__} with {values}, found {len(found)}. "
            f"There are:{there or ' none'}"
        )
    return found


def drain(
    model: type[M],
    session_factory: Callable[[], Session],
    handler: Callable[[M, Session], object],
    *,
    retry: RetryPolicy | None = None,
) -> list[M]:
    """Handle all messages that are due, one after the other, until none is left.

    Each has a transaction of its own, in which it is acked, as in a :class:`.Worker`. Messages that
    the handler enqueues are handled as well; those not due yet are left, see
    :func:`travelling_clock`. None is handled while the queue is paused.

    :param model: the queue's class.
    :param session_factory: makes a session.
    :param handler: called as ``handler(message, session)``.
    :param retry: whether and when a message whose handler failed is retried. Default: the exception
        is raised, and the message is ready again.
    :return: the messages whose handler returned, in this order, as they were received.
    :raises AssertionError: after 10,000 messages, which means that they never end.
    """
    check_function("handler", handler)

    @contextmanager
    def begin() -> Iterator[tuple[Session, Callable[[M], object]]]:
        with begin_session(session_factory) as session:
            yield session, lambda message: check_result(handler(message, session))

    return draining.drain(model, begin, retry)


def _describe(message: MessageQueueMixin) -> str:
    payload = [
        f"{column.key}={getattr(message, column.key)!r}"
        for column in inspect(type(message)).column_attrs
        if OPTIONS_KEY not in column.columns[0].info
    ]
    return f"{type(message).__name__}({', '.join(payload)})"


class Clock:
    """The time that this library sees. It stands still until it is moved."""

    def __init__(self) -> None:
        self._now = clock.now()

    @property
    def now(self) -> datetime:
        """The time, in UTC."""
        return clock.to_datetime(self._now)

    def move_by(self, step: float | timedelta) -> None:
        """Advance the time.

        :param step: seconds, or a timedelta.
        """
        self._now += clock.to_nanoseconds(clock.to_seconds(step, "step"))

    def move_to(self, time: datetime) -> None:
        """Go to a time, also an earlier one.

        :param time: with a time zone.
        """
        self._now = clock.from_datetime(time, "time")


@contextmanager
def travelling_clock() -> Iterator[Clock]:
    """Stop the time of this process, until the clock is moved.

    SQLite's time is the process's; a MySQL server keeps its own.
    """
    travelling = Clock()
    before = clock.wall_clock
    clock.wall_clock = lambda: travelling._now
    try:
        yield travelling
    finally:
        clock.wall_clock = before
