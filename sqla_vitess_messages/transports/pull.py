"""Lease by polling: exactly as many messages as there is room for, on every database."""

from __future__ import annotations

import math
import time

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .. import clock
from ..rows import local_notify
from .base import BaseTransport, M, Receiver
from .choice import Pull
from .leaser import ShardLeaser
from .purge import Purger
from .shards import choose_shards, find_shards, shard_engine

__all__ = ["PullTransport"]

SHORTEST_PAUSE = 0.002
"""Seconds until the next poll after one that found nothing; doubled at each further one."""

WHOLE = ""
"""The key of the one leaser of a database without shards."""

SHARDS_CACHED_FOR = 5.0
"""Seconds until a keyspace's shards are queried again."""


class PullTransport(BaseTransport[M]):
    """Polls the table, or one shard of it after the other.

    :param vitess: whether the server is a vtgate: it has shards, and its tablets purge by
        themselves.
    :param receiver: is notified when a commit in this process has enqueued something.
    """

    def __init__(
        self, model: type[M], engine: Engine, options: Pull, *, vitess: bool, receiver: Receiver[M]
    ) -> None:
        super().__init__(model, engine)
        self._receiver = receiver
        local_notify.listen(self._table, receiver)
        self._vitess = vitess
        self._wanted_shards = options.shards
        self._longest_pause = clock.to_seconds(options.poll_interval, "poll_interval")
        self._purger = None if vitess else Purger(self._table, engine)
        self._leasers: dict[str, ShardLeaser[M]] = {}
        self._leasers_until = 0.0
        self._turn = 0
        self.pause = 0.0
        self._interrupted = False

    def poll(self, limit: int) -> None:
        if self.lease(limit, probe_first=self.pause > 0):
            self.pause = 0.0
        else:
            self.pause = min(max(self.pause * 2, SHORTEST_PAUSE), self._longest_pause)
        if self._purger is not None and not self._interrupted:
            self.pause = min(self.pause, self._purger.run())

    def lease(self, limit: int, *, due_for: float = 0, probe_first: bool = False) -> int:
        """Lease and deliver up to ``limit`` messages, those of one shard after the other's.

        :param due_for: seconds that they must have been due.
        :param probe_first: check first, without any lock, whether there are due messages.
        :return: how many there were.
        """
        leased = 0
        try:
            for leaser in self._leasers_in_turn():
                if leased == limit or self._interrupted:
                    break
                leaser.revoke_unanswered()
                if probe_first and not leaser.has_due_messages():
                    continue
                batch = leaser.lease(limit - leased, due_for=due_for)
                if batch.size:
                    leased += batch.size
                    self._receiver.deliver(*batch)
        except DBAPIError:
            self._leasers_until = 0.0  # The shards may have changed.
            raise
        return leased

    def interrupt(self) -> None:
        self._interrupted = True

    def stop(self) -> None:
        """Revoke what may have been leased. Pulled messages are delivered at once."""
        for leaser in self._leasers.values():
            leaser.revoke_unanswered()

    def disconnect(self) -> None:
        for leaser in self._leasers.values():
            leaser.disconnect()
        super().disconnect()

    def close(self) -> None:
        local_notify.stop_listening(self._table, self._receiver)
        self._close_leasers()
        super().close()

    def _leasers_in_turn(self) -> list[ShardLeaser[M]]:
        """Return the leasers, another one first each time."""
        if time.monotonic() >= self._leasers_until:
            self._find_shards()
        leasers = list(self._leasers.values())
        self._turn = (self._turn + 1) % len(leasers)
        return leasers[self._turn :] + leasers[: self._turn]

    def _find_shards(self) -> None:
        shards = find_shards(self._engine, self._table) if self._vitess else []
        known = shards is not None or not self._leasers
        if shards:
            shards = choose_shards(shards, self._wanted_shards)
        if known and set(shards or [WHOLE]) != self._leasers.keys():
            self._close_leasers()
            self._leasers = {
                shard: self._leaser(shard_engine(self._engine, shard), shard)
                for shard in shards or ()
            } or {WHOLE: self._leaser(self._engine, None)}
        self._leasers_until = time.monotonic() + (SHARDS_CACHED_FOR if self._vitess else math.inf)

    def _leaser(self, engine: Engine, shard: str | None) -> ShardLeaser[M]:
        return ShardLeaser(self._model, engine, shard, is_interrupted=lambda: self._interrupted)

    def _close_leasers(self) -> None:
        for leaser in self._leasers.values():
            leaser.close()
        self._leasers = {}
