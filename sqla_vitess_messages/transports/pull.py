"""Lease by polling: exactly as many messages as there is room for, on every database."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .. import wakeups
from ..ddl import OPTIONS_KEY
from ..options import QueueOptions
from .base import Leasing, M
from .puller import Puller
from .shards import choose_shards, find_shards, shard_engine

__all__ = ["Pull", "PullTransport"]

SHORTEST_PAUSE = 0.002
"""Seconds until the next look after one that found nothing; doubled at each further one."""

WHOLE = ""
"""Stands for a database without shards."""

SHARDS_KNOWN_FOR = 5.0
"""Seconds until it is looked up again which shards a keyspace has."""


class Pull(Leasing[M]):
    """Looks at the table, or at one shard of it after the other, and says when to look again.

    :param vitess: whether the server is a vtgate: it has shards, and its tablets purge by
        themselves.
    :param poll_interval: seconds between two looks at an idle queue, at most.
    :param shards: names or key ranges of shards; None for all.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        *,
        vitess: bool,
        poll_interval: float,
        shards: Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, engine)
        options: QueueOptions = self._table.info[OPTIONS_KEY]
        self._vitess = vitess
        self._wanted = shards
        self._longest_pause = poll_interval
        self._purge_interval = options.poller_interval
        self._next_purge = time.monotonic() + self._purge_interval
        self._pullers: dict[str, Puller[M]] = {}
        self._pullers_until = 0.0
        self._turn = 0
        self.pause = 0.0
        """Seconds to wait before the next look. Set it to 0 when there is something."""
        self.interrupted = False
        """Set it when a look that is under way shall come to an end."""

    def look(self, limit: int) -> Iterator[M]:
        """Yield up to ``limit`` messages that are due, leased."""
        try:
            yield from self._look(limit)
        except DBAPIError:
            self._pullers_until = 0.0  # The shards may have changed.
            raise

    def _look(self, limit: int) -> Iterator[M]:
        taken = 0
        for puller in self._take_turns():
            if taken == limit or self.interrupted:
                break
            if self.pause == 0 or puller.something_is_due():
                for message in puller.take(limit - taken):
                    taken += 1
                    yield message
        if taken:
            self.pause = 0.0
        else:
            self.pause = min(max(self.pause * 2, SHORTEST_PAUSE), self._longest_pause)
        if not self._vitess and time.monotonic() >= self._next_purge:
            self._purge()

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
            while puller.purge() and not self.interrupted:
                pass
        self._next_purge = time.monotonic() + self._purge_interval


class PullTransport(Pull[M]):
    """Waits between two looks in the subscriber's thread, until a commit in this process."""

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        *,
        vitess: bool,
        poll_interval: float,
        shards: Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, engine, vitess=vitess, poll_interval=poll_interval, shards=shards)
        self._wake = threading.Event()
        wakeups.listen(self._table, self._wake)

    def receive(self, limit: int) -> Iterator[M]:
        if self._wake.wait(self.pause):
            self._wake.clear()
            self.pause = 0.0
        yield from self.look(limit)

    def interrupt(self) -> None:
        self.interrupted = True
        self._wake.set()

    def stop(self) -> list[M]:
        return []
