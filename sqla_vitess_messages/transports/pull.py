"""Lease by polling: exactly as many messages as there is room for, on every database."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .. import wakeups
from ..wakeups import Wakeable
from .base import Deliver, Leasing, M
from .puller import Puller
from .shards import choose_shards, find_shards, shard_engine

__all__ = ["PullTransport"]

SHORTEST_PAUSE = 0.002
"""Seconds until the next look after one that found nothing; doubled at each further one."""

WHOLE = ""
"""Stands for a database without shards."""

SHARDS_KNOWN_FOR = 5.0
"""Seconds until it is looked up again which shards a keyspace has."""


class PullTransport(Leasing[M]):
    """Looks at the table, or at one shard of it after the other, and says when to look again.

    :param vitess: whether the server is a vtgate: it has shards, and its tablets purge by
        themselves.
    :param poll_interval: seconds between two looks at an idle queue, at most.
    :param shards: names or key ranges of shards; None for all.
    :param deliver: called with what was leased.
    :param wake: set when a commit in this process has enqueued something.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        *,
        vitess: bool,
        poll_interval: float,
        shards: Sequence[str] | None,
        deliver: Deliver[M],
        wake: Wakeable,
    ) -> None:
        super().__init__(model, engine)
        self._deliver = deliver
        self._wake = wake  # The listeners forget what nobody holds.
        wakeups.listen(self._table, wake)
        self._vitess = vitess
        self._wanted = shards
        self._longest_pause = poll_interval
        self._purge_interval = self._options.poller_interval
        self._next_purge = time.monotonic() + self._purge_interval
        self._pullers: dict[str, Puller[M]] = {}
        self._pullers_until = 0.0
        self._turn = 0
        self.pause = 0.0
        self._interrupted = False

    def look(self, limit: int) -> None:
        if self.take(limit, at_once=self.pause == 0):
            self.pause = 0.0
        else:
            self.pause = min(max(self.pause * 2, SHORTEST_PAUSE), self._longest_pause)
        if not self._vitess and time.monotonic() >= self._next_purge:
            self._purge()

    def take(self, limit: int, *, due_for: float = 0, at_once: bool = True) -> int:
        """Lease and deliver up to ``limit`` messages, those of one shard after the other's.

        :param due_for: seconds that they must have been due.
        :param at_once: False: look first whether something is due, without locking anything.
        :return: how many there were.
        """
        taken = 0
        try:
            for puller in self._take_turns():
                if taken == limit or self._interrupted:
                    break
                if not (at_once or puller.something_is_due()):
                    continue
                if messages := puller.take(limit - taken, due_for=due_for):
                    taken += len(messages)
                    self._deliver(messages)
        except DBAPIError:
            self._pullers_until = 0.0  # The shards may have changed.
            raise
        return taken

    def interrupt(self) -> None:
        self._interrupted = True

    def stop(self) -> None:
        """Do nothing: what is pulled is delivered at once."""

    def close(self) -> None:
        self._forget_shards()
        super().close()

    def _take_turns(self) -> list[Puller[M]]:
        """Return the pullers, another one first each time."""
        if time.monotonic() >= self._pullers_until:
            self._look_up_shards()
        pullers = list(self._pullers.values())
        self._turn = (self._turn + 1) % len(pullers)
        return pullers[self._turn :] + pullers[: self._turn]

    def _look_up_shards(self) -> None:
        shards = find_shards(self._engine) if self._vitess else []
        known = shards is not None or not self._pullers
        if shards:
            shards = choose_shards(shards, self._wanted)
        if known and set(shards or [WHOLE]) != self._pullers.keys():
            self._forget_shards()
            self._pullers = {
                shard: Puller(self._model, shard_engine(self._engine, shard), shard)
                for shard in shards or ()
            } or {WHOLE: Puller(self._model, self._engine)}
        self._pullers_until = time.monotonic() + (SHARDS_KNOWN_FOR if self._vitess else math.inf)

    def _forget_shards(self) -> None:
        for puller in self._pullers.values():
            puller.close()
        self._pullers = {}

    def _purge(self) -> None:
        for puller in self._pullers.values():
            while puller.purge() and not self._interrupted:
                pass
        self._next_purge = time.monotonic() + self._purge_interval
