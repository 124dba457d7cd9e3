"""Settle for handlers without a transaction of their own: many settlements in one commit.

One UPDATE per ack is 450-620 a second through vtgate, 100 to an UPDATE 11,000-16,000.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from datetime import timedelta
from functools import partial
from math import inf
from typing import NamedTuple, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ..errors import SettlementError, SubscriberClosed
from ..events import Outcome
from ..rows import settle
from ..rows.lease import Lease
from ..rows.message import Message
from ..rows.separately import find_failures
from ..rows.transient import is_lock_timeout, retry_transaction
from ..runtime import Runtime

__all__ = ["LONGEST_WAIT", "Future", "PendingSettlement", "SettlementBatcher", "settle_together"]

LINGER = 0.002
"""Seconds that a settlement waits for others to join it."""

LONGEST_WAIT = 30.0
"""Seconds after which a settlement is given up that waits for others, which the server holds up."""

LARGEST_GROUP = 500
"""Settlements in one commit: as many as one statement takes."""


class Future(Protocol):
    """A future of :mod:`concurrent.futures` or of :mod:`asyncio`."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


class Change(NamedTuple):
    """A settlement that one statement can make for many messages."""

    outcome: Outcome
    reason: str | None = None
    delay: float | timedelta | None = None


class PendingSettlement(NamedTuple):
    """The lease of one message to settle, and the future that its result is for.

    :param give_up_at: when it is no longer to be begun, on :func:`time.monotonic`.
    """

    lease: Lease
    change: Change
    future: Future
    give_up_at: float = inf

    def succeed(self) -> None:
        """Resolve the future: the settlement is committed."""
        with suppress(InvalidStateError):  # The subscriber was closed meanwhile.
            if not self.future.done():
                self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Resolve the future with the reason why the settlement isn't committed."""
        with suppress(InvalidStateError):
            if not self.future.done():
                self.future.set_exception(error)


class SettlementBatcher:
    """Groups settlements and commits them, one group after the other.

    :param commit: commits a group, and resolves its futures.
    :param runtime: runs :meth:`_run` beside the callers.
    """

    def __init__(
        self, commit: Callable[[Sequence[PendingSettlement]], None], runtime: Runtime
    ) -> None:
        self._commit = commit
        self._lock = threading.RLock()
        self._work_available = runtime.condition(self._lock)
        self._progress = runtime.condition(self._lock)
        self._waiting: list[PendingSettlement] = []
        self._committing: list[PendingSettlement] = []
        self._added = self._finished = 0
        self._closed = False
        self._task = runtime.start(self._run, "SettlementBatcher")

    def add(self, settlement: PendingSettlement) -> None:
        """Settle with the next group.

        :raises SubscriberClosed: after :meth:`close`.
        """
        with self._lock:
            if self._closed:
                raise SubscriberClosed("the subscriber is closing")
            self._waiting.append(settlement)
            self._added += 1
            # The first one wakes the batcher, and so does the one that fills a group.
            if len(self._waiting) in (1, LARGEST_GROUP):
                self._work_available.notify()

    def flush(self, timeout: float | None) -> bool:
        """Wait until all settlements so far are committed or have failed.

        :param timeout: seconds to wait at most.
        :return: False when the time was over first.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            last = self._added
            while self._finished < last:
                remaining = None if end is None else end - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return False
                self._progress.wait(remaining)
        return True

    def close(self) -> None:
        """Settle what waits, and return when that is done."""
        with self._lock:
            self._closed = True
            self._work_available.notify()
        self._task.join()

    def cancel(self) -> None:
        """Wait for the server no longer. Every future is resolved now."""
        self._abandon()
        self._task.cancel()

    def _run(self) -> None:
        try:
            while group := self._next_group():
                if timely := _fail_overdue(group):
                    self._commit_all(timely)
                with self._lock:
                    self._committing = []
                    self._finished += len(group)
                    self._progress.notify_all()
        finally:
            self._abandon()

    def _commit_all(self, group: Sequence[PendingSettlement]) -> None:
        try:
            self._commit(group)
        except Exception as error:  # noqa: BLE001  # Of the runtime: the server is silent.
            for pending in group:
                pending.fail(error)

    def _abandon(self) -> None:
        """Resolve every future that is left."""
        with self._lock:
            self._closed = True
            left = [*self._committing, *self._waiting]
            self._waiting.clear()
            self._finished = self._added
            self._progress.notify_all()
        for pending in left:
            pending.fail(SubscriberClosed("closed before the server answered; not known to commit"))

    def _next_group(self) -> list[PendingSettlement]:
        """Wait for settlements, and then a little for others to join them.

        :return: an empty list when there will be no more.
        """
        with self._lock:
            while not self._waiting and not self._closed:
                self._work_available.wait()
            end = time.monotonic() + LINGER
            while len(self._waiting) < LARGEST_GROUP and not self._closed:
                remaining = end - time.monotonic()
                if remaining <= 0 or not self._work_available.wait(remaining):
                    break
            group = self._committing = self._waiting[:LARGEST_GROUP]
            del self._waiting[:LARGEST_GROUP]
        return group


def _fail_overdue(group: Sequence[PendingSettlement]) -> list[PendingSettlement]:
    """Give up those that have waited for too long, and return the others."""
    now = time.monotonic()
    timely = [pending for pending in group if pending.give_up_at >= now]
    if len(timely) < len(group):
        error = OSError(f"not settled, because the server has failed for {LONGEST_WAIT:g} s")
        for pending in group:
            if pending.give_up_at < now:
                pending.fail(error)
    return timely


def settle_together(
    model: type[Message], engine: Engine, group: Sequence[PendingSettlement]
) -> None:
    """Commit the settlements of a group that can be, and resolve all of its futures."""
    try:
        try:
            _settle_each(model, engine, group, skip_locked=False)
        except _RowsLocked:
            _settle_each(model, engine, group, skip_locked=True)
    except Exception as error:  # noqa: BLE001  # Every future has to be resolved.
        for pending in group:
            pending.fail(error)


class _RowsLocked(OSError):
    """Other transactions have kept rows locked for long: that isn't waited for again."""


def _settle_each(
    model: type[Message], engine: Engine, group: Sequence[PendingSettlement], *, skip_locked: bool
) -> None:
    """Commit the settlements of a group that can be, and fail the others.

    :raises _RowsLocked: unless those whose rows are locked are to be among the others.
    """

    def settle_some(some: Sequence[PendingSettlement]) -> None:
        locked = retry_transaction(
            partial(_settle_in_transaction, model, engine, some, skip_locked=skip_locked)
        )
        for pending in some:
            if pending.lease in locked:
                pending.fail(_locked_error(pending.lease.message_id))
            else:
                pending.succeed()

    unsettled = [pending for pending in group if not pending.future.done()]
    for pending, error in find_failures(settle_some, unsettled):
        pending.fail(error)


def _settle_in_transaction(
    model: type[Message], engine: Engine, group: Sequence[PendingSettlement], *, skip_locked: bool
) -> set[Lease]:
    """Settle a group, and return the leases whose rows are locked, which were skipped."""
    locked: set[Lease] = set()
    # Each lease once, as the same message may be given twice.
    by_change: dict[Change, dict[Lease, None]] = defaultdict(dict)
    try:
        with engine.begin() as connection:
            if skip_locked:
                locked = settle.find_locked(model, connection, {pending.lease for pending in group})
            for pending in group:
                if pending.lease not in locked:
                    by_change[pending.change][pending.lease] = None
            for change, leases in ((change, list(some)) for change, some in by_change.items()):
                if change.outcome == "ack":
                    settle.ack(model, connection, leases)
                elif change.outcome == "fail":
                    settle.fail(model, connection, leases, change.reason)
                else:
                    settle.retry(model, connection, leases, change.delay, change.reason)
    except DBAPIError as error:
        if is_lock_timeout(error):
            raise _RowsLocked from error
        raise
    return locked


def _locked_error(message_id: int) -> SettlementError:
    return SettlementError(
        f"another transaction keeps the row of message {message_id} locked, so that it is not "
        "settled; it comes back when its lease is over",
        message_ids=[message_id],
    )
