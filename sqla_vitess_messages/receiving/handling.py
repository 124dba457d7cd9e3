"""Handle received messages: run the handler and ack in one transaction, or retry, or fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

from ..errors import AlreadySettled, LeaseLost
from ..rows import settle
from ..rows.deadlocks import retry_on_deadlock
from ..rows.epochs import attempts
from ..rows.lease import Lease, lease_of
from ..rows.message import Message, queue_table
from .renewal import LeaseRenewals
from .retries import RetryDecision, RetryPolicy, decide, is_exhausted

__all__ = ["BeginHandling", "MessageProcessor"]

M = TypeVar("M", bound=Message)

log = logging.getLogger(__name__)

BeginHandling = Callable[[], AbstractContextManager[tuple[Session, Callable[[Any], object]]]]
"""Begins a transaction, which commits with the block. Gives its session, and a function that runs
the handler in it."""


class MessageProcessor(Generic[M]):
    """Runs a handler for messages, and settles them.

    :param begin: begins the transaction of a handler, or of a settlement alone.
    :param batch_size: None where the handler takes one message instead of a list.
    :param is_cancellation: returns whether an error means that the running task is to end.
    """

    def __init__(
        self,
        model: type[M],
        begin: BeginHandling,
        *,
        retry: RetryPolicy,
        batch_size: int | None,
        renewals: LeaseRenewals,
        is_cancellation: Callable[[BaseException], bool],
    ) -> None:
        self._model = model
        self._queue = queue_table(model).name
        self._begin = begin
        self._retry = retry
        self._batch_size = batch_size
        self._renewals = renewals
        self._is_cancellation = is_cancellation

    def process(self, messages: Sequence[M]) -> None:
        """Handle and settle messages. Only a cancellation is raised."""
        fresh: list[M] = []
        for message in messages:
            if is_exhausted(self._retry, attempts(message.epoch)):
                reason = f"handed out {attempts(message.epoch)} times and never settled"
                self._settle(message, RetryDecision(None, reason))
            else:
                fresh.append(message)
        if len(fresh) > 1 and self._handle_batch(fresh):
            return
        for message in fresh:
            self._handle_one(message)

    def release(self, messages: Sequence[M]) -> None:
        """Make messages ready for others at once, whose handlers were cancelled."""
        self._renewals.resume(_leases(messages))
        for message in messages:
            if (lease := lease_of(message)) is None or not lease.is_settled:
                self._settle(message, RetryDecision(0, "cancelled"))

    def _handle_batch(self, messages: Sequence[M]) -> bool:
        """Handle messages in one transaction, and return whether it has committed."""
        try:
            self._handle(messages)
        except BaseException as error:
            if self._is_cancellation(error):
                raise
            # Each message alone will show which of them failed.
            log.info(
                "a batch failed, its messages follow one by one: %s", error,
                extra={"queue": self._queue},
            )  # fmt: skip
            return False
        return True

    def _handle_one(self, message: M) -> None:
        try:
            self._handle([message])
        except (AlreadySettled, LeaseLost) as error:
            self._log_lost(message, error)
        except BaseException as error:
            if self._is_cancellation(error):
                raise
            decision = decide(self._retry, error, attempts(message.epoch))
            log.info("rolled back: %s", decision.reason, extra=self._extra(message), exc_info=error)
            self._settle(message, decision)

    def _handle(self, messages: Sequence[M]) -> None:
        """Run the handler and ack, in one transaction: repeated when it met a deadlock."""
        retry_on_deadlock(partial(self._handle_in_transaction, messages))

    def _handle_in_transaction(self, messages: Sequence[M]) -> None:
        leases = _leases(messages)
        try:
            with self._begin() as (session, run_handler):
                run_handler(messages[0] if self._batch_size is None else list(messages))
                self._renewals.pause(leases)
                settle.ack(self._model, session, messages)
        except BaseException:
            self._renewals.resume(leases)
            raise

    def _settle(self, message: M, decision: RetryDecision) -> None:
        """Retry or fail a message, in a transaction of its own."""
        try:
            self._renewals.pause(_leases([message]))
            with self._begin() as (session, _run_handler):
                if decision.delay is None:
                    settle.fail(self._model, session, [message], decision.reason)
                else:
                    settle.retry(self._model, session, [message], decision.delay)
        except LeaseLost as error:
            self._log_lost(message, error)
        except Exception:  # Its lease will end.
            log.exception("not settled; the message comes back later", extra=self._extra(message))

    def _log_lost(self, message: M, error: Exception) -> None:
        log.warning("others have the message: %s", error, extra=self._extra(message))

    def _extra(self, message: M) -> dict[str, object]:
        return {"queue": self._queue, "message_id": message.id, "epoch": message.epoch}


def _leases(messages: Sequence[Message]) -> list[Lease]:
    return [lease for message in messages if (lease := lease_of(message)) is not None]
