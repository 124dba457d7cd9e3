"""The messages that a subscriber has leased: those that wait in it, and those handed out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from ..events import Dead, Delivered, Event, LeaseExpired, Settled
from ..rows.lease import Lease, lease_of
from ..rows.message import Message

__all__ = ["InFlight"]

M = TypeVar("M", bound=Message)

COMMIT_POLL_INTERVAL = 0.002
"""Seconds between two checks whether a settlement's COMMIT is over, for which there is no event."""


class InFlight(Generic[M]):
    """Tracks in-flight messages against a concurrency limit.

    A message takes one of ``limit`` slots until its settlement has committed, or its lease ends.
    Not safe for threads by itself.

    :param queue: the table's name, for events.
    :param limit: how many messages may be leased at a time.
    :param emit_events: whether to collect events.
    :param keep_settled: whether to collect the leases that are settled, for :meth:`take_settled`.
    """

    def __init__(
        self, queue: str, limit: int, *, emit_events: bool, keep_settled: bool = False
    ) -> None:
        self._queue = queue
        self._emit_events = emit_events
        self._settled: list[Lease] | None = [] if keep_settled else None
        self.limit = limit
        self._waiting: deque[M] = deque()
        self._unusable: list[M] = []
        self._handed_out: set[Lease] = set()
        self._settling: list[Lease] = []
        self._next_expiry = math.inf
        self._events: list[Event] = []

    def add(self, messages: Iterable[M]) -> None:
        """Add leased messages, which wait for :meth:`checkout`."""
        self._waiting.extend(messages)

    def checkout(self, limit: int, on_settling: Callable[[Sequence[Lease]], None]) -> list[M]:
        """Hand out waiting messages whose lease is still usable.

        :param limit: how many at most.
        :param on_settling: called with the leases of these messages when they are being settled.
        """
        self.free_slots()
        taken: list[M] = []
        while self._waiting and len(taken) < limit and len(self._handed_out) < self.limit:
            message = self._waiting.popleft()
            lease = _lease(message)
            lease.call_when_settling(on_settling)
            self._handed_out.add(lease)
            self._next_expiry = min(self._next_expiry, lease.expires_at)
            if self._emit_events:
                self._events.append(
                    Delivered(self._queue, lease.message_id, lease.epoch, lease.attempts)
                )
            taken.append(message)
        return taken

    def add_settling(self, leases: Sequence[Lease]) -> None:
        """Watch the commit of settlements, which begins now."""
        self._settling += leases

    def free_slots(self) -> None:
        """Drop leases that are settled or expired, and set unusable waiting messages aside."""
        if self._settling:
            settled = [lease for lease in self._settling if lease.is_settled]
            self._handed_out.difference_update(settled)
            self._settling = [lease for lease in self._settling if lease.is_settling]
            if self._settled is not None:
                self._settled += settled
            if self._emit_events:
                for lease in settled:
                    self._add_settled_events(lease)
        now = time.monotonic()
        if now >= self._next_expiry:
            expired = [lease for lease in self._handed_out if lease.is_expired]
            self._handed_out.difference_update(expired)
            if self._emit_events:
                self._events += (
                    LeaseExpired(self._queue, lease.message_id, lease.epoch) for lease in expired
                )
            self._next_expiry = min(
                (lease.expires_at for lease in self._handed_out), default=math.inf
            )
        while self._waiting and not _lease(self._waiting[0]).is_usable:
            self._unusable.append(self._waiting.popleft())

    def _add_settled_events(self, lease: Lease) -> None:
        outcome = lease.outcome
        assert outcome is not None
        seconds = time.monotonic() - lease.leased_at
        self._events.append(Settled(self._queue, lease.message_id, lease.epoch, outcome, seconds))
        if outcome == "fail":
            self._events.append(Dead(self._queue, lease.message_id, lease.epoch))

    def drop(self, leases: Iterable[Lease]) -> None:
        """Forget messages that were handed out, and whose leases are over."""
        self.free_slots()
        self._handed_out.difference_update(leases)

    @property
    def free(self) -> int:
        """How many slots are free; less than 0 if a stream brought too many messages."""
        used = len(self._handed_out) + len(self._waiting) + len(self._unusable)
        return self.limit - used

    @property
    def wants_more(self) -> bool:
        """Whether it pays to receive: nothing waits, or half of all slots are free."""
        return self._pays_with(self.free)

    @property
    def may_want_more(self) -> bool:
        """Whether it will pay to receive when the settlements under way are committed."""
        return self._pays_with(self.free + len(self._settling))

    def _pays_with(self, free: int) -> bool:
        return free > 0 and (not self._waiting or free >= self.limit / 2)

    @property
    def must_release(self) -> bool:
        """Whether there are unusable messages, or more waiting ones than the limit allows."""
        return bool(self._unusable) or (self.free < 0 and bool(self._waiting))

    @property
    def unusable(self) -> list[M]:
        """Messages to release, because they have waited for too long."""
        return list(self._unusable)

    def drop_unusable(self, messages: Sequence[M]) -> None:
        """Forget unusable messages that were released: the first ones of :attr:`unusable`."""
        del self._unusable[: len(messages)]

    def take_surplus(self) -> list[M]:
        """Remove and return the waiting messages beyond the limit."""
        return [self._waiting.pop() for _ in range(min(-self.free, len(self._waiting)))]

    def set_all_aside(self) -> None:
        """Make every waiting message unusable, so that it is released."""
        self._unusable += self._waiting
        self._waiting.clear()

    def take_all_waiting(self) -> list[M]:
        """Remove and return every message that was not handed out."""
        waiting = [*self._waiting, *self._unusable]
        self._waiting.clear()
        self._unusable.clear()
        return waiting

    def seconds_until_change(self, longest: float) -> float:
        """Return for how long to wait at most: a slot may become free without a notification.

        :param longest: seconds.
        """
        seconds = longest
        if self._settling and self.may_want_more:
            seconds = min(seconds, COMMIT_POLL_INTERVAL)
        if self._next_expiry < math.inf:
            seconds = min(seconds, max(self._next_expiry - time.monotonic(), 0.001))
        return seconds

    @property
    def has_settled(self) -> bool:
        """Whether there is something for :meth:`take_settled`."""
        self.free_slots()
        return bool(self._settled)

    def take_settled(self) -> list[Lease]:
        """Remove and return the leases that were settled since the last call, if they are kept."""
        settled = self._settled or []
        if settled:
            self._settled = []
        return settled

    def take_events(self) -> list[Event]:
        """Remove and return the events since the last call."""
        events, self._events = self._events, []
        return events


def _lease(message: Message) -> Lease:
    lease = lease_of(message)
    assert lease is not None
    return lease
