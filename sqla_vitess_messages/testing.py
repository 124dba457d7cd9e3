"""Helpers for tests of code that enqueues and handles messages, on SQLite in memory.

.. code-block:: python

    pytest_plugins = ["sqla_vitess_messages.pytest_plugin"]   # in the topmost conftest.py

    def test_sign_up(message_sessions):
        sessions = message_sessions(Base.metadata)
        with sessions.begin() as session:
            sign_up(session, "ada@example.com")
            assert_enqueued(session, Welcome, address="ada@example.com")
        assert len(drain(Welcome, sessions, send_welcome)) == 1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from . import clock
from .mixin import MessageQueueMixin
from .receiving.arguments import check_function, check_result
from .receiving.handling import handle_in_session
from .receiving.retries import RetryDecision, RetryPolicy, decide
from .rows import states
from .rows.lease import give_leases, leases_of
from .rows.message import queue_table
from .rows.reload import load_again

__all__ = ["Clock", "assert_enqueued", "drain", "enqueued", "travelling_clock"]

M = TypeVar("M", bound=MessageQueueMixin)

MOST = 10_000
"""Messages after which :func:`drain` assumes an endless loop."""


def enqueued(session: Session, model: type[M], **values: Any) -> list[M]:
    """Return the unsettled messages that a session sees, its own uncommitted ones included.

    :param session: is flushed first.
    :param model: the queue's class.
    :param values: the values that attributes must have.
    """
    session.flush()
    unsettled = select(model).filter_by(time_acked=None, **values)
    return list(session.scalars(unsettled.order_by(model.time_next, model.id)))


def assert_enqueued(session: Session, model: type[M], *, count: int = 1, **values: Any) -> list[M]:
    """Raise an AssertionError unless a session sees so many unsettled messages with these values.

    :param session: is flushed first.
    :param model: the queue's class.
    :param count: how many.
    :param values: the values that attributes must have.
    :return: the messages.
    :raises AssertionError: with a list of the messages that there are.
    """
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
    :func:`travelling_clock`.

    :param model: the queue's class.
    :param session_factory: makes a session.
    :param handler: called as ``handler(message, session)``.
    :param retry: whether and when a message whose handler failed is retried. Default: the exception
        is raised, and the message is ready again.
    :return: the messages whose handler returned, in this order, as they were received.
    :raises AssertionError: after 10,000 messages, which means that they never end.
    """
    check_function("handler", handler)
    handled: list[M] = []
    for _ in range(MOST):
        message = _lease_next(model, session_factory)
        if message is None:
            return handled
        try:
            with session_factory() as session, session.begin():
                handle_in_session(
                    model,
                    session,
                    load_again(model, session, leases_of(model, [message])),
                    lambda some: check_result(handler(some[0], session)),
                )
        except (Exception, SystemExit) as error:
            _settle(session_factory, message, error, retry)
            if retry is None:
                raise
        else:
            handled.append(message)
    raise AssertionError(f"drain: still messages of {model.__name__} after {MOST}")


def _settle(
    session_factory: Callable[[], Session],
    message: MessageQueueMixin,
    error: BaseException,
    retry: RetryPolicy | None,
) -> None:
    decision = RetryDecision(0, "raised")
    if retry is not None:
        decision = decide(retry, error, message.attempts)
    with session_factory() as session, session.begin():
        if decision.delay is None:
            message.fail(session, decision.reason)
        else:
            message.retry(session, decision.delay)


def _lease_next(model: type[M], session_factory: Callable[[], Session]) -> M | None:
    table = queue_table(model)
    columns = table.c
    order = [columns.priority] if "priority" in columns else []
    due = (
        select(model)
        .where(states.is_unsettled(table), states.is_ready(table))
        .order_by(*order, columns.time_next, columns.id)
        .limit(1)
    )
    with session_factory() as session, session.begin():
        message = session.scalars(due).first()
        if message is None:
            return None
        session.expunge(message)
        session.execute(states.lease(table), {"_ids": [message.id]})
    give_leases([message], usable_until=math.inf, expires_at=lambda _epoch: math.inf)
    return message


def _describe(message: MessageQueueMixin) -> str:
    queue_columns = vars(MessageQueueMixin).keys()
    payload = [
        f"{column.key}={getattr(message, column.key)!r}"
        for column in inspect(type(message)).column_attrs
        if column.key not in queue_columns
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
