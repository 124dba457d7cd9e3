"""Lease the messages of an ordered queue: of each key the first one, when it is due.

A poll goes from key to key, on from where the last one has ended, so that no key waits for another
one forever. The heads that are due are locked by their ``id``, and checked again: since they were
found, another transaction may have leased or settled one, or committed an earlier message of its
key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any

from sqlalchemy import Connection, Engine, Select

from .. import clock
from ..rows import heads
from ..rows.heads import Head
from ..rows.lease import Lease
from ..vitess.server import is_sqlite
from .base import Batch, M
from .engines import READS_ONLY
from .leaser import LARGEST_PULL, Query, ShardLeaser

__all__ = ["OrderedLeaser"]

FEWEST_KEYS = 50
"""Keys that one statement looks at, at least."""

MOST_KEYS = 5_000
"""Keys that one poll looks at. The next poll goes on with the others."""

MOST_SETTLED = 1_000
"""Settled messages that are remembered until a poll looks for those that follow them."""


class OrderedLeaser(ShardLeaser[M]):
    """Leases the due heads of keys. The parameters are those of :class:`.ShardLeaser`."""

    def __init__(self, model: type[M], engine: Engine, *args: Any, **options: Any) -> None:
        super().__init__(model, engine, *args, **options)
        self._search = _Search(self._table, by_dives=is_sqlite(engine.dialect))
        self._locking_heads = self._lockings(partial(heads.lock_due, self._table))
        self._locking_followers = self._lockings(partial(heads.lock_followers, self._table))
        self._has_followed = False

    def note_settled(self, leases: Sequence[Lease]) -> None:
        """Have the next poll look for the messages that follow these settled ones."""
        self._search.settled.extend(lease.message_id for lease in leases)

    def seconds_until_due(self) -> float:
        """Return after how many seconds a message may be due.

        A message that waits for others of its key counts as due. So this is 0 where a search tells
        more, and takes no longer.
        """
        if self._search.settled or self._search.is_small:
            return 0.0
        return super().seconds_until_due()

    def lease(self, limit: int, *, due_for: float = 0) -> Batch[M]:  # noqa: ARG002
        """Lease heads, 500 at most. There is no stream that might bring them meanwhile.

        Those that follow settled messages are leased without a search, at most every other time:
        the next poll searches for heads of all keys, while consumers work on these.
        """
        limit = min(limit, LARGEST_PULL)
        if not self._has_followed and (settled := self._search.take_settled(limit)):
            batch = self._lease(self._locking_followers, partial(self._lock_first, settled))
            if batch.size:
                self._has_followed = True
                self.until_due = 0.0
                return batch
        self._has_followed = False
        with self._engine.connect().execution_options(**{READS_ONLY: True}) as connection:
            due = [head.id for head in self._search.find_due(connection, limit)]
        self.until_due = self._search.until_due
        if not due:
            return Batch([], [])
        batch = self._lease(self._locking_heads, partial(self._lock_first, due))
        if batch.size < len(due):
            self.until_due = 0.0
        return batch

    def _lock_first(
        self, ids: list[int], connection: Connection, query: Query, locking: Select[Any]
    ) -> list[Any]:
        """Lock rows that are due and the first ones of their keys."""
        self._begin_on_tablet(connection)
        locked = list(query(locking, {"_ids": ids}))
        if not locked:
            return []
        # Only a statement after the one that locks sees all that was committed before.
        checking = {"_ids": [row.id for row in locked]}
        first = set(connection.scalars(heads.first_of(self._table), checking))
        return [row for row in locked if row.id in first]


class _Search:
    """Goes from key to key of one table on one server, round and round.

    :param by_dives: whether to find each key by a step from the one before.
    """

    def __init__(self, table: Any, *, by_dives: bool) -> None:
        self._table = table
        self._walk = heads.key_walk_by_dives if by_dives else heads.key_walk
        self._last: tuple[Any, ...] | None = None
        """The key after which the next poll begins; None for the first one."""
        self.settled: deque[int] = deque(maxlen=MOST_SETTLED)
        self.until_due = 0.0
        """Seconds until another head is due, after a poll that has seen all keys; else 0."""
        self.is_small = False
        """Whether one statement was enough to see all keys."""

    def find_due(self, connection: Connection, limit: int) -> list[Head]:
        """Return heads that are due, so many at most."""
        size = min(max(2 * limit, FEWEST_KEYS), LARGEST_PULL)
        seen: dict[int, Head] = {}
        due: list[Head] = []
        has_wrapped = self._last is None
        is_round_over = False
        while len(due) < limit and len(seen) < MOST_KEYS and not is_round_over:
            found = self._look_at(connection, size)
            new = [head for head in found if head.id not in seen]
            seen |= {head.id: head for head in new}
            taken = [head for head in new if head.wait <= 0][: limit - len(due)]
            due += taken
            is_last = len(found) < size
            is_round_over = has_wrapped and (is_last or len(new) < len(found))
            has_wrapped |= is_last
            if len(due) == limit:
                self._last = taken[-1].key
            else:
                self._last = None if is_last else found[-1].key
            if is_round_over:
                self.settled.clear()  # All keys were seen.
            elif len(due) < limit:
                due += self._find_followers(connection, limit - len(due), seen)
        self.until_due = 0.0
        if is_round_over and len(due) < limit:
            later = min((head.wait for head in seen.values() if head.wait > 0), default=inf)
            self.until_due = later / clock.NANOSECONDS
        self.is_small = is_round_over and len(seen) < size
        return due

    def take_settled(self, limit: int) -> list[int]:
        """Remove and return so many settled messages at most, those settled first."""
        return [self.settled.popleft() for _ in range(min(limit, len(self.settled)))]

    def _look_at(self, connection: Connection, size: int) -> list[Head]:
        """Return the heads of the next keys."""
        statement = self._walk(self._table, from_start=self._last is None)
        values = {f"_after_{number}": value for number, value in enumerate(self._last or ())}
        found: dict[tuple[Any, ...], Head] = {}
        for row in connection.execute(statement, values | {"_limit": size}):
            head = Head.of(row)
            found.setdefault(head.key, head)
        return list(found.values())

    def _find_followers(
        self, connection: Connection, limit: int, seen: dict[int, Head]
    ) -> list[Head]:
        """Return due heads of the keys of which this process has settled messages."""
        ids = self.take_settled(limit)
        if not ids:
            return []
        rows = connection.execute(heads.followers(self._table), {"_ids": ids})
        found = [head for head in map(Head.of, rows) if head.id not in seen]
        seen |= {head.id: head for head in found}
        return [head for head in found if head.wait <= 0]
