"""Lease by polling: exactly as many messages as there is room for, on every database."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .. import clock
from ..rows import local_notify
from ..rows.lease import Lease
from ..table.order import is_ordered
from ..vitess.server import is_sqlite
from .base import BaseTransport, M, Receiver
from .choice import Pull
from .leaser import ShardLeaser
from .ordered import OrderedLeaser
from .purge import Purger
from .shards import choose_shards, find_shards, shard_engine

if TYPE_CHECKING:
    from .sqlite_watch import CommitWatch

__all__ = ["PullTransport"]

SHORTEST_PAUSE = 0.002
"""Seconds until the next poll after one that found nothing; doubled at each further one."""

ALL_LEASED_PAUSE = 0.01
"""Seconds until the next poll, at most, after one that has leased all that is known to be due."""

WATCHED_PAUSE = 1.0
"""Seconds until the next poll where each commit is noticed, so that only time makes messages due.
The clock may be set meanwhile."""

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
        super().__init__(model, engine, vitess=vitess)
        self._receiver = receiver
        local_notify.listen(self._table, receiver)
        self._commit_seen = False
        self._watch = self._watch_commits()
        self._wanted_shards = options.shards
        self._longest_pause = clock.to_seconds(options.poll_interval, "poll_interval")
        self._purger = None if vitess else Purger(self._table, engine)
        self._leasers: dict[str, ShardLeaser[M]] = {}
        self._leasers_until = 0.0
        self._turn = 0
        self._until_due = 0.0
        self.pause = 0.0
        self._interrupted = False

    def _watch_commits(self) -> CommitWatch | None:
        """Have commits of other processes noticed, where the database is a file."""
        if not is_sqlite(self._engine.dialect):
            return None
        # Some Pythons were built without SQLite.
        from .sqlite_watch import database_file, watch_commits

        with self._engine.connect() as connection:
            file = database_file(connection, self._table)
        return watch_commits(file, self._poll_after_commit) if file else None

    def _poll_after_commit(self) -> None:
        self._commit_seen = True
        self._receiver.poll_now()

    def poll(self, limit: int) -> None:
        # A commit that was seen may be anything. That of an enqueueing in this process isn't.
        probe_first, self._commit_seen = self.pause > 0 or self._commit_seen, False
        leased = self.lease(limit, probe_first=probe_first)
        if leased == limit:
            self.pause = 0.0
        elif leased:
            # After some messages, that there are no more for now is all but certain.
            self.pause = max(min(self._until_due, ALL_LEASED_PAUSE), SHORTEST_PAUSE)
        else:
            self.pause = self._next_pause()
        if self._purger is not None and not self._interrupted:
            self.pause = min(self.pause, self._purger.run())

    def _next_pause(self) -> float:
        """Return for how long it doesn't pay to poll, after a poll that found nothing."""
        longest = min(self.pause * 2, self._longest_pause)
        if self._watch is not None and self._watch.is_alive:
            longest = max(WATCHED_PAUSE, self._longest_pause)
        return max(min(self._until_due, longest), SHORTEST_PAUSE)

    def lease(self, limit: int, *, due_for: float = 0, probe_first: bool = False) -> int:
        """Lease and deliver up to ``limit`` messages, those of one shard after the other's.

        :param due_for: seconds that they must have been due.
        :param probe_first: check first, without any lock, whether there are due messages.
        :return: how many there were.
        """
        leased = 0
        self._until_due = math.inf
        try:
            for leaser in self._leasers_in_turn():
                if leased == limit or self._interrupted:
                    self._until_due = 0.0
                    break
                leaser.revoke_unanswered()
                if probe_first:
                    until_due = leaser.seconds_until_due()
                    if until_due > 0:
                        self._until_due = min(self._until_due, until_due)
                        continue
                batch = leaser.lease(limit - leased, due_for=due_for)
                if batch.size:
                    leased += batch.size
                    self._receiver.deliver(*batch)
                self._until_due = min(self._until_due, leaser.until_due)
        except DBAPIError:
            self._leasers_until = 0.0  # The shards may have changed.
            raise
        return leased

    def note_settled(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if (leaser := self._leasers.get(lease.shard or WHOLE)) is not None:
                leaser.note_settled([lease])

    def interrupt(self) -> None:
        self._interrupted = True

    def stop(self) -> None:
        """Revoke what may have been leased. Pulled messages are delivered at once."""
        for leaser in self._leasers.values():
            leaser.revoke_unanswered()

    def engines(self) -> list[Engine]:
        of_leasers = [leaser.engines() for leaser in self._leasers.values()]
        return [*super().engines(), *chain.from_iterable(of_leasers)]

    def close(self) -> None:
        local_notify.stop_listening(self._table, self._receiver)
        if self._watch is not None:
            self._watch.close()
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
        leaser = OrderedLeaser if is_ordered(self._table) else ShardLeaser
        return leaser(
            self._model,
            engine,
            shard,
            vitess=self._vitess,
            is_interrupted=lambda: self._interrupted,
        )

    def _close_leasers(self) -> None:
        for leaser in self._leasers.values():
            leaser.close()
        self._leasers = {}
