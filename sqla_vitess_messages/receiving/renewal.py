"""Renew the leases of messages while their handlers run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import LeaseLost
from ..logs import get_logger
from ..rows.lease import Lease
from ..runtime import Runtime

__all__ = ["Heartbeat", "LeaseRenewals"]

STOP_TIMEOUT = 1.0
"""Seconds that :meth:`Heartbeat.stop` waits for a server that doesn't answer."""

RETRY_INTERVAL = 1.0
"""Seconds, at most, until a renewal is repeated for which the database failed."""

log = get_logger(__name__)


class LeaseRenewals:
    """Knows which leases are to be renewed, and which of them were lost. Safe for threads."""

    def __init__(self) -> None:
        self.on_watch: Callable[[float], None] = lambda _end: None
        """Called with the time at which the first of some leases ends, when these are watched."""
        self._watched: set[Lease] = set()
        self._paused: set[Lease] = set()
        self._lost: set[Lease] = set()
        self._lock = threading.Lock()

    @contextmanager
    def watch(self, leases: Sequence[Lease]) -> Iterator[None]:
        """Have leases renewed for the length of a block."""
        with self._lock:
            self._watched.update(leases)
        self.on_watch(min((lease.expires_at for lease in leases), default=math.inf))
        try:
            yield
        finally:
            with self._lock:
                self._watched.difference_update(leases)
                self._paused.difference_update(leases)
                self._lost.difference_update(leases)

    def pause(self, leases: Sequence[Lease]) -> None:
        """Renew these leases no more, because their settlement follows.

        :raises LeaseLost: when any of them was lost.
        """
        with self._lock:
            self._paused.update(leases)
            lost = [
                lease.message_id
                for lease in leases
                if lease in self._lost and not lease.is_settled  # By the handler.
            ]
        if lost:
            raise LeaseLost(f"the lease of {lost} was lost while the handler ran", message_ids=lost)

    def resume(self, leases: Sequence[Lease]) -> None:
        """Renew these leases again, because their settlement was rolled back."""
        with self._lock:
            self._paused.difference_update(leases)

    def to_renew(self) -> list[Lease]:
        """Return the leases to renew now."""
        with self._lock:
            leases = self._watched - self._paused - self._lost
            return [lease for lease in leases if not lease.is_settled]

    def mark_lost(self, leases: Sequence[Lease]) -> None:
        """Note that others may have the messages of these leases."""
        with self._lock:
            self._lost |= self._watched.intersection(leases)


class Heartbeat:
    """Renews leases by ``ack_wait``, three times in that time, and before one of them ends.

    :param extend: extends leases by so many seconds, and returns those that are lost.
    :param ack_wait: seconds.
    """

    def __init__(
        self,
        renewals: LeaseRenewals,
        extend: Callable[[Sequence[Lease], float], Sequence[Lease]],
        ack_wait: float,
        runtime: Runtime,
    ) -> None:
        self._renewals = renewals
        self._extend = extend
        self._ack_wait = ack_wait
        self._interval = ack_wait / 3
        self._next = time.monotonic() + self._interval
        self._lock = threading.RLock()
        self._changed = runtime.condition(self._lock)
        self._stopped = False
        renewals.on_watch = self._renew_before
        self._task = runtime.start(self._run, "Heartbeat")

    def stop(self) -> None:
        """Renew nothing more."""
        with self._lock:
            self._stopped = True
            self._changed.notify()
        if not self._task.join(STOP_TIMEOUT):
            self._task.cancel()

    def _renew_before(self, end: float) -> None:
        """Renew before a lease ends: a message that has waited for long has little time left."""
        at = end - self._interval
        if at < self._next:
            with self._lock:
                self._next = min(self._next, at)
                self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            if leases := self._renewals.to_renew():
                try:
                    self._renewals.mark_lost(self._extend(leases, self._ack_wait))
                except Exception as error:  # noqa: BLE001  # The next attempt may succeed.
                    log.warning("leases could not be extended: %s", error)
                    self._renew_before(time.monotonic() + RETRY_INTERVAL + self._interval)

    def _wait(self) -> bool:
        """Wait for the next time to renew, and set the one after it; return False to stop."""
        with self._lock:
            while not self._stopped and (remaining := self._next - time.monotonic()) > 0:
                self._changed.wait(remaining)
            self._next = time.monotonic() + self._interval
            return not self._stopped
