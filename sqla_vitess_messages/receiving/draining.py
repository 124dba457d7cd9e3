"""Handle the due messages of a queue one after the other, without a subscriber: for tests."""

from __future__ import annotations

import math
from typing import TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from .. import clock
from ..rows import heads, pausing, settle, states
from ..rows.lease import give_leases, leases_of
from ..rows.message import Message, queue_table
from ..rows.reload import load_again
from ..table.options import queue_options
from ..table.order import is_ordered
from .handling import BeginHandling, handle_in_session
from .retries import RetryDecision, RetryPolicy, decide

__all__ = ["drain"]

M = TypeVar("M", bound=Message)

MOST = 10_000
"""Messages after which :func:`drain` assumes an endless loop."""


def drain(model: type[M], begin: BeginHandling, retry: RetryPolicy | None) -> list[M]:
    """Handle all messages that are due; see :func:`sqla_vitess_messages.testing.drain`."""
    handled: list[M] = []
    for _ in range(MOST):
        message = _lease_next(model, begin)
        if message is None:
            return handled
        try:
            _handle(model, begin, message)
        except (Exception, SystemExit) as error:
            _settle(model, begin, message, error, retry)
            if retry is None:
                raise
        else:
            handled.append(message)
    raise AssertionError(f"drain: still messages of {model.__name__} after {MOST}")


def _handle(model: type[M], begin: BeginHandling, message: M) -> None:
    with begin() as (session, run_handler):
        again = load_again(model, session, leases_of(model, [message]))
        handle_in_session(model, session, again, lambda some: run_handler(some[0]))


def _settle(
    model: type[M],
    begin: BeginHandling,
    message: M,
    error: BaseException,
    retry: RetryPolicy | None,
) -> None:
    [lease] = leases = leases_of(model, [message])
    decision = RetryDecision(0, "raised")
    if retry is not None:
        decision = decide(retry, error, lease.attempts)
    with begin() as (session, _run_handler):
        if decision.delay is None:
            settle.fail(model, session, leases, decision.reason)
        else:
            settle.retry(model, session, leases, decision.delay, decision.reason)


def _lease_next(model: type[M], begin: BeginHandling) -> M | None:
    with begin() as (session, _run_handler):
        is_pausable = queue_options(queue_table(model)).pausable
        if is_pausable and pausing.is_paused(model, session):
            return None
        return _lease_first(model, session)


def _lease_first(model: type[M], session: Session) -> M | None:
    found = session.execute(_select_due(model)).first()
    if found is None:
        return None
    message: M = found[0]
    session.expunge(message)
    parameters = states.lease_parameters([message.id], found[1])
    session.execute(states.lease(queue_table(model)), parameters)
    give_leases([message], usable_until=math.inf, expires_at=lambda _epoch: math.inf)
    return message


def _select_due(model: type[M]) -> Select[M, int]:
    table = queue_table(model)
    columns = table.c
    order = [columns.priority] if "priority" in columns else []
    first = [heads.is_first(table)] if is_ordered(table) else []
    return (
        select(model, clock.database_now())
        .where(states.is_unsettled(table), states.is_ready(table), *first)
        .order_by(*order, columns.time_next, columns.id)
        .limit(1)
    )
