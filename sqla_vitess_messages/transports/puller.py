"""Lease due messages of one table on one server, in Vitess's order and with its backoff."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, Select, Table, bindparam, delete, select
from sqlalchemy.orm import Session

from .. import clock
from ..backoff import backoff
from ..ddl import MYSQL
from ..deadlocks import despite_deadlocks
from ..enqueue import PRIORITIES
from ..layouts import LAYOUTS
from ..leases import unindexed, update_by_id
from .base import Leasing, M

__all__ = ["Puller"]

PRIORITIES_KNOWN_FOR = 0.05
"""Seconds until it is looked up again which priorities there are."""

LARGEST_PULL = 500
"""Messages leased by one transaction."""

PURGE_CHUNK = 500
"""Rows deleted by one statement, as in Vitess."""


class Puller(Leasing[M]):
    """Selects due rows, locks them, and postpones them as Vitess does.

    One priority at a time: within it the rows that are due are one range of ``poller_idx``. Asked
    for all priorities at once, MySQL would walk over every scheduled and every dead message first,
    because the index has the latest ``time_next`` in front.

    :param shard: what the engine's connections talk to, if that is not the whole keyspace.
    """

    def __init__(self, model: type[M], engine: Engine, shard: str | None = None) -> None:
        super().__init__(model, engine)
        self._shard = shard
        self._priorities: list[int] = []
        self._priorities_until = 0.0
        layout = LAYOUTS[self._options.layout]
        self._ranked = "priority" in layout.columns
        indexes = {index.name for index in layout.indexes}
        # next_idx finds what is due in all priorities at once, but only poller_idx has an order.
        self._looks_by_rank = "next_idx" not in indexes
        columns = self._table.c
        unsettled = columns.time_acked.is_(None)
        due = columns.time_next < clock.database_now() - bindparam("_due_for", type_=BigInteger)
        ranked = [unsettled, due]
        if self._ranked:
            ranked.append(columns.priority == bindparam("_priority"))
        unranked = [unindexed(columns.time_acked).is_(None), due]
        self._looking = _by_index(
            select(columns.id).where(*(ranked if self._looks_by_rank else unranked)).limit(1),
            self._table,
            "poller_idx" if self._looks_by_rank else "next_idx",
        )
        self._taking = _by_index(
            self._select()
            .where(*ranked)
            .order_by(columns.time_next.desc())
            .limit(bindparam("_limit"))
            .with_for_update(skip_locked=True),
            self._table,
            "poller_idx" if self._ranked else "next_idx",
        )
        self._purging = (
            select(columns.id).where(columns.time_acked < bindparam("_before")).limit(PURGE_CHUNK)
        )

    def take(self, limit: int, *, due_for: float = 0) -> list[M]:
        """Lease up to ``limit`` messages, and no more than 500, that have been due for seconds."""
        asked = time.monotonic()
        limit = min(limit, LARGEST_PULL)
        messages = despite_deadlocks(partial(self._take, limit, clock.to_nanoseconds(due_for)))
        self._lease(messages, asked, time.monotonic(), shard=self._shard)
        return messages

    def _take(self, limit: int, due_for: int) -> list[M]:
        messages: list[M] = []
        with self._engine.begin() as connection:
            session = Session(connection, expire_on_commit=False, autoflush=False)
            values = {"_due_for": due_for}
            for priority in self._ranks(connection):
                values |= {"_priority": priority, "_limit": limit - len(messages)}
                messages += session.scalars(self._taking, values)
                if len(messages) == limit:
                    break
            session.expunge_all()
            if messages:
                self._postpone(connection, messages)
        return messages

    def something_is_due(self) -> bool:
        """Look without locking anything, which an idle queue's inserts would have to wait for."""
        with self._engine.connect() as connection:
            ranks = self._ranks(connection) if self._looks_by_rank else [0]
            values = [{"_due_for": 0, "_priority": priority} for priority in ranks]
            return any(connection.scalar(self._looking, value) is not None for value in values)

    def purge(self) -> bool:
        """Delete some of what was acked longer ago than ``purge_after``.

        :return: whether there may be more.
        """
        before = clock.now() - clock.to_nanoseconds(self._options.purge_after)
        with self._engine.begin() as connection:
            ids = list(connection.scalars(self._purging, {"_before": before}))
            if ids:
                connection.execute(delete(self._table).where(self._table.c.id.in_(ids)))
        return len(ids) == PURGE_CHUNK

    def _ranks(self, connection: Connection) -> list[int]:
        """Return the priorities of unsettled messages, the first to go out first.

        Each is found by one look into the index, from the one before it.
        """
        if not self._ranked:
            return [0]
        if time.monotonic() >= self._priorities_until:
            found: list[int] = []
            following = PRIORITIES[0]
            while (rank := self._next_rank(connection, following)) is not None:
                found.append(rank)
                following = rank + 1
            self._priorities = found
            self._priorities_until = time.monotonic() + PRIORITIES_KNOWN_FOR
        return self._priorities

    def _next_rank(self, connection: Connection, least: int) -> int | None:
        columns = self._table.c
        statement = (
            select(columns.priority)
            .where(columns.time_acked.is_(None), columns.priority >= least)
            .order_by(columns.priority)
            .limit(1)
        )
        found: int | None = connection.scalar(_by_index(statement, self._table, "poller_idx"))
        return found

    def _postpone(self, connection: Connection, messages: list[M]) -> None:
        """Start the leases, as Vitess does after it has sent messages."""
        epoch = self._table.c.epoch
        lease = clock.to_nanoseconds(self._options.ack_wait)
        connection.execute(
            update_by_id(self._table).values(
                time_next=clock.database_now() + lease + backoff(epoch, self._options),
                epoch=epoch + 1,
            ),
            {"_ids": [message.id for message in messages]},
        )


def _by_index(statement: Select[Any], table: Table, index: str) -> Select[Any]:
    """Keep MySQL from another index, or a scan: both lock what they only look at."""
    for dialect in MYSQL:
        statement = statement.with_hint(table, f"FORCE INDEX ({index})", dialect)
    return statement
