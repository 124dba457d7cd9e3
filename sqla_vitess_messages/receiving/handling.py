"""Handle received messages: run the handler and ack in one transaction, or retry, or fail."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import exc
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from ..errors import AlreadySettled, InvalidArgumentType, LeaseLost
from ..rows import settle
from ..rows.lease import Lease, give_lease, lease_of
from ..rows.message import Message, queue_table
from ..rows.reasons import describe_error
from .renewal import LeaseRenewals
from .repetition import Repetition, is_busy
from .retries import RetryDecision, RetryPolicy, decide, is_exhausted

__all__ = [
    "BeginHandling",
    "MessageProcessor",
    "check_handler",
    "check_result",
    "check_sessions",
    "handle_in_session",
]

M = TypeVar("M", bound=Message)

log = logging.getLogger(__name__)

RunHandler = Callable[[Any], object]
"""Runs a handler with a message, or with a list of them."""

BeginHandling = Callable[[], AbstractContextManager[tuple[Session, RunHandler]]]
"""Begins a transaction, which commits with the block. Gives its session, and a function that runs
the handler in it."""

_IMMUTABLE = frozenset(
    (bool, int, float, str, bytes, type(None), Decimal, UUID, date, datetime, time, timedelta)
)
"""The types of values that several instances may share."""


def check_handler(handler: Callable[..., Any], *, is_async: bool) -> None:
    """Check that a handler is of the kind that its worker calls.

    :raises InvalidArgumentType: for a generator function, for a coroutine function without
        asyncio, and for anything else than a coroutine function with it.
    """
    kind = _kind_of(handler)
    if kind == ("coroutine function" if is_async else "function"):
        return
    if is_async:
        remedy = "expected an 'async def' function; Worker calls ordinary ones"
    else:
        remedy = "it would return without having run; expected an ordinary function"
        if kind == "coroutine function":
            remedy += ", or use AsyncWorker"
    raise InvalidArgumentType(f"handler={handler!r}: is a {kind}, {remedy}")


def _kind_of(handler: Callable[..., Any]) -> str:
    """Return what a call of the handler gives: a result, or something that still has to run."""
    functions = [handler, getattr(handler, "__call__", None)]  # noqa: B004  # Of an object.
    for test, kind in (
        (inspect.iscoroutinefunction, "coroutine function"),
        (inspect.isasyncgenfunction, "asynchronous generator function"),
        (inspect.isgeneratorfunction, "generator function"),
    ):
        if any(test(function) for function in functions):
            return kind
    return "function"


def check_result(result: object) -> None:
    """Check that an ordinary handler has run.

    :raises InvalidArgumentType: when it returned something that still has to run.
    """
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise InvalidArgumentType(
            f"the handler returned {result!r} and has not run; return its result instead"
        )


def check_sessions(model: type[Message], begin: BeginHandling) -> None:
    """Check that handlers get sessions with transactions.

    :raises InvalidArgument: when each of their statements commits by itself.
    """
    # That the database is busy or away is no reason to refuse them.
    with suppress(exc.DBAPIError, exc.TimeoutError), begin() as (session, _run_handler):
        settle.settling_connection(model, session)


def handle_in_session(
    model: type[M],
    session: Session,
    messages: Sequence[M],
    run_handler: Callable[[list[M]], object],
    before_ack: Callable[[], None],
) -> None:
    """Run a handler with instances that belong to the session, and ack what it has not settled.

    :param messages: received, and left as they are, so that another attempt begins like this one.
    """
    leases = [_lease(message) for message in messages]
    instances = [_instance_in(session, m, lease) for m, lease in zip(messages, leases, strict=True)]
    run_handler(instances)
    before_ack()
    connection = settle.settling_connection(model, session)
    unsettled = {
        lease: instance
        for lease, instance in zip(leases, instances, strict=True)
        if not (lease.is_settled or settle.is_settled_in(connection, lease))
    }
    deleted = [lease for lease, instance in unsettled.items() if _is_deleted(session, instance)]
    settle.settle_with_row(model, session, deleted)
    settle.ack(model, session, [lease for lease in unsettled if lease not in deleted])


def _instance_in(session: Session, message: M, lease: Lease) -> M:
    """Return an instance of the message that belongs to the session, and can be changed freely."""
    values = message.__dict__
    kept = {
        name: deepcopy(value)
        for name, value in values.items()
        if type(value) not in _IMMUTABLE and name not in ("_sa_instance_state", "_lease")
    }
    instance = session.merge(message, load=False)
    values.update(kept)
    give_lease(instance, lease)
    return instance


def _is_deleted(session: Session, instance: Message) -> bool:
    state = instance_state(instance)
    return instance in session.deleted or state.deleted or state.was_deleted


class MessageProcessor(Generic[M]):
    """Runs a handler for messages, and settles them.

    :param begin: begins the transaction of a handler, or of a settlement alone.
    :param release: makes messages ready for others, as if they had not been handed out.
    :param batch_size: None where the handler takes one message instead of a list.
    :param repeat: calls a transaction, several times if necessary.
    :param is_cancellation: returns whether an error means that the running task is to end.
    """

    def __init__(
        self,
        model: type[M],
        begin: BeginHandling,
        release: Callable[[Sequence[M]], None],
        *,
        retry: RetryPolicy,
        batch_size: int | None,
        renewals: LeaseRenewals,
        repeat: Repetition,
        is_cancellation: Callable[[BaseException], bool],
    ) -> None:
        self._model = model
        self._queue = queue_table(model).name
        self._begin = begin
        self._release = release
        self._retry = retry
        self._batch_size = batch_size
        self._renewals = renewals
        self._repeat = repeat
        self._is_cancellation = is_cancellation

    def process(self, messages: Sequence[M]) -> None:
        """Handle and settle messages. Only a cancellation is raised."""
        fresh: list[M] = []
        for message in messages:
            lease = _lease(message)
            if is_exhausted(self._retry, lease.attempts):
                reason = f"handed out {lease.attempts} times and never settled"
                self._settle(lease, RetryDecision(None, reason))
            else:
                fresh.append(message)
        if len(fresh) > 1 and self._handle_batch(fresh):
            return
        for message in fresh:
            self._handle_one(message)

    def release(self, messages: Sequence[M]) -> None:
        """Make messages ready for others at once, whose handlers were cancelled."""
        leases = [_lease(message) for message in messages]
        self._renewals.resume(leases)
        for lease in leases:
            if not lease.is_settled:
                self._settle(lease, RetryDecision(0, "cancelled"))

    def _handle_batch(self, messages: Sequence[M]) -> bool:
        """Handle messages in one transaction, and return whether that is done with."""
        try:
            self._handle(messages)
        except BaseException as error:
            if self._is_cancellation(error):
                raise
            if is_busy(error):
                self._release_unhandled(messages, error)
                return True
            # Each message alone will show which of them failed.
            log.info(
                "a batch failed, its messages follow one by one: %s", describe_error(error),
                extra={"queue": self._queue},
            )  # fmt: skip
            return False
        return True

    def _handle_one(self, message: M) -> None:
        lease = _lease(message)
        try:
            self._handle([message])
        except (AlreadySettled, LeaseLost) as error:
            self._log_lost(lease, error)
        except BaseException as error:
            if self._is_cancellation(error):
                raise
            if is_busy(error):
                self._release_unhandled([message], error)
                return
            decision = decide(self._retry, error, lease.attempts)
            log.info("rolled back: %s", decision.reason, extra=self._extra(lease), exc_info=error)
            self._settle(lease, decision)

    def _handle(self, messages: Sequence[M]) -> None:
        """Run the handler and ack, in one transaction."""
        self._repeat(partial(self._handle_in_transaction, messages))

    def _handle_in_transaction(self, messages: Sequence[M]) -> None:
        leases = [_lease(message) for message in messages]
        try:
            with self._begin() as (session, run_handler):
                handle_in_session(
                    self._model,
                    session,
                    messages,
                    lambda some: run_handler(some[0] if self._batch_size is None else some),
                    partial(self._renewals.pause, leases),
                )
        except BaseException:
            self._renewals.resume(leases)
            raise

    def _release_unhandled(self, messages: Sequence[M], error: BaseException) -> None:
        """Release messages that could not be handled because of others; no attempt counts."""
        leases = [_lease(message) for message in messages]
        extra = {"queue": self._queue, "message_ids": [lease.message_id for lease in leases]}
        log.warning(
            "the database is busy, messages are released: %s", describe_error(error), extra=extra
        )
        try:
            self._repeat(partial(self._release, messages))
        except BaseException as failure:
            if self._is_cancellation(failure):
                raise
            log.exception("not released; the messages come back later", extra=extra)

    def _settle(self, lease: Lease, decision: RetryDecision) -> None:
        """Retry or fail a message, in a transaction of its own."""
        try:
            self._renewals.pause([lease])
            self._repeat(partial(self._settle_in_transaction, lease, decision))
        except LeaseLost as error:
            self._log_lost(lease, error)
        except BaseException as error:
            if self._is_cancellation(error):
                raise
            log.exception("not settled; the message comes back later", extra=self._extra(lease))

    def _settle_in_transaction(self, lease: Lease, decision: RetryDecision) -> None:
        with self._begin() as (session, _run_handler):
            if decision.delay is None:
                settle.fail(self._model, session, [lease], decision.reason)
            else:
                settle.retry(self._model, session, [lease], decision.delay)

    def _log_lost(self, lease: Lease, error: Exception) -> None:
        log.warning("others have the message: %s", error, extra=self._extra(lease))

    def _extra(self, lease: Lease) -> dict[str, object]:
        return {"queue": self._queue, "message_id": lease.message_id, "epoch": lease.epoch}


def _lease(message: Message) -> Lease:
    lease = lease_of(message)
    assert lease is not None  # It was received.
    return lease
