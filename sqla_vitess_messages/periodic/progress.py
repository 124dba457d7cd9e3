"""Which tick of a periodic message is due, as seen by one of the schedulers that share them.

The database knows of each message the last tick that is done. A tick is done by the transaction
that enqueues its message and moves the last tick on to it, from exactly where it was: of those
who try, one succeeds. All times are the database's, so it makes no difference what clocks the
processes have.

What was due before a scheduler started is up to the others, who do one tick after the other. If
nobody does them, they were missed, and the last of them is made up for. What becomes due after its
start a scheduler does in order, however late it is.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import NamedTuple

from .periodic import Periodic

__all__ = ["POLL_INTERVAL", "Due", "Progress"]

MAX_LATE = timedelta(seconds=60)
"""A scheduler that is later than this counts as one that did not run."""

PATIENCE = 10.0
"""Seconds for which a scheduler that starts watches whether others do what is due already."""

POLL_INTERVAL = 0.25
"""Seconds until it polls again meanwhile."""


class Due(NamedTuple):
    """What to do next for a periodic message.

    :param tick: the next tick; None if there is none any more.
    :param is_due: whether to enqueue its message now.
    """

    tick: datetime | None
    is_due: bool


class Progress:
    """What a scheduler has seen of a periodic message."""

    def __init__(self, periodic: Periodic) -> None:
        self.periodic = periodic
        self._since: datetime | None = None
        """When this scheduler started, or went on after it had been late."""
        self._last: datetime | None = None
        self._last_moved = 0.0
        """When it noticed that the last tick had changed, on the monotonic clock."""

    def begin(self, now: datetime) -> None:
        """Be responsible for the ticks from now on, in order."""
        self._since = now

    def due(self, last: datetime, now: datetime) -> Due:
        """Return what to do next, after :meth:`begin`.

        :param last: the last tick that is done.
        """
        assert self._since is not None
        if last != self._last:
            self._last, self._last_moved = last, time.monotonic()
        tick = self.periodic._next(last)
        if tick is None or tick > now:
            return Due(tick, is_due=False)
        is_late = now - tick > MAX_LATE
        if tick > self._since:
            if not is_late:
                return Due(tick, is_due=True)
            self._since = now
        elif not is_late and time.monotonic() - self._last_moved < PATIENCE:
            return Due(tick, is_due=False)
        return self._make_up(last, now)

    def _make_up(self, last: datetime, now: datetime) -> Due:
        """Return the last of the missed ticks, or the one after them if it is too old."""
        assert self._since is not None
        missed = self.periodic._latest(last, self._since)
        if missed is not None and now - missed <= self.periodic._catch_up:
            return Due(missed, is_due=True)
        tick = self.periodic._next(self._since)
        return Due(tick, is_due=tick is not None and tick <= now)
