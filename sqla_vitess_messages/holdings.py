"""What a subscriber has at the moment: messages that wait in it, and leases that handlers hold."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from .events import Dead, Delivered, Event, LeaseExpired, Settled
from .leases import Lease, lease_of
from .mixin import MessageQueueMixin

__all__ = ["Holdings"]

M = TypeVar("M", bound=MessageQueueMixin)

COMMIT_ASKED_EACH = 0.002
"""Seconds until it is asked again whether a settlement's COMMIT is over."""


class Holdings(Generic[M]):
    """Counts places: of ``limit``, each message takes one until it is settled, or its lease ends.

    Not safe for threads by itself.

    :param queue: the table's name, for events.
    :param limit: how many messages may be leased at a time.
    :param told: whether anybody listens to the events.
    """

    def __init__(self, queue: str, limit: int, *, told: bool) -> None:
        self._queue = queue
        self._told = told
        self._limit = limit
        self._waiting: deque[M] = deque()
        self._stale: list[M] = []
        self._held: set[Lease] = set()
        self._settling: list[Lease] = []
        self._next_expiry = math.inf
        self._events: list[Event] = []

    def receive(self, messages: Iterable[M]) -> None:
        """Let leased messages wait for somebody who takes them."""
        self._waiting.extend(messages)

    def take(self, n: int) -> list[M]:
        """Hand out up to ``n`` messages whose lease still runs, and not more than the limit."""
        self.free_places()
        taken: list[M] = []
        while self._waiting and len(taken) < n and len(self._held) < self._limit:
            message = self._waiting.popleft()
            lease = _lease(message)
            self._held.add(lease)
            self._next_expiry = min(self._next_expiry, lease.deadline)
            if self._told:
                self._events.append(Delivered(self._queue, message.id, message.epoch))
            taken.append(message)
        return taken

    def note_settling(self, leases: Sequence[Lease]) -> None:
        """Watch the commit of settlements, which begins now."""
        self._settling += leases

    def free_places(self) -> None:
        """Forget leases that are settled or have run out, and set aside what waited too long."""
        if self._settling:
            settled = [lease for lease in self._settling if lease.settled]
            self._held.difference_update(settled)
            self._settling = [lease for lease in self._settling if lease.settling]
            if self._told:
                for lease in settled:
                    self._note_settled(lease)
        now = time.monotonic()
        if now >= self._next_expiry:
            expired = [lease for lease in self._held if lease.expired]
            self._held.difference_update(expired)
            if self._told:
                self._events += (
                    LeaseExpired(self._queue, lease.message_id, lease.epoch) for lease in expired
                )
            self._next_expiry = min((lease.deadline for lease in self._held), default=math.inf)
        while self._waiting and _lease(self._waiting[0]).is_stale:
            self._stale.append(self._waiting.popleft())

    def _note_settled(self, lease: Lease) -> None:
        how = lease.settlement
        assert how is not None
        seconds = time.monotonic() - lease.begun
        self._events.append(Settled(self._queue, lease.message_id, lease.epoch, how, seconds))
        if how == "fail":
            self._events.append(Dead(self._queue, lease.message_id, lease.epoch))

    @property
    def room(self) -> int:
        """How many more messages may be leased; less than 0 if a stream brought too many."""
        return self._limit - len(self._held) - len(self._waiting) - len(self._stale)

    @property
    def wants_more(self) -> bool:
        """Whether it pays to receive: nothing waits, or half of all places are free."""
        return self.room > 0 and (not self._waiting or self.room >= self._limit / 2)

    @property
    def may_want_more(self) -> bool:
        """Whether it will pay to receive when the settlements under way are committed."""
        room = self.room + len(self._settling)
        return room > 0 and (not self._waiting or room >= self._limit / 2)

    @property
    def is_to_give_back(self) -> bool:
        """Whether there are messages that waited for too long, or more than there may be."""
        return bool(self._stale) or (self.room < 0 and bool(self._waiting))

    @property
    def stale(self) -> list[M]:
        """Messages to give back, because they waited for too long."""
        return list(self._stale)

    def drop_stale(self, messages: Sequence[M]) -> None:
        """Forget stale messages that were given back: the first that there were."""
        del self._stale[: len(messages)]

    def drop_surplus(self) -> list[M]:
        """Take back what waits beyond the limit."""
        return [self._waiting.pop() for _ in range(min(-self.room, len(self._waiting)))]

    def drop_unseen(self) -> list[M]:
        """Take back everything that nobody has got."""
        unseen = [*self._waiting, *self._stale]
        self._waiting.clear()
        self._stale.clear()
        return unseen

    def until_change(self, most: float) -> float:
        """Return how many seconds to wait at most: a place may become free without notice.

        :param most: seconds.
        """
        soon = most
        if self._settling and self.may_want_more:
            soon = min(soon, COMMIT_ASKED_EACH)
        if self._next_expiry < math.inf:
            soon = min(soon, max(self._next_expiry - time.monotonic(), 0.001))
        return soon

    def drain_events(self) -> list[Event]:
        """Return what happened since the last call."""
        events, self._events = self._events, []
        return events


def _lease(message: MessageQueueMixin) -> Lease:
    lease = lease_of(message)
    assert lease is not None
    return lease
