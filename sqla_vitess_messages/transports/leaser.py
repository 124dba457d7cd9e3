"""Lease due messages of one table on one server, in Vitess's order and with its backoff."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, bindparam, select

from .. import clock
from ..rows import states
from ..rows.backoff import random_jitter
from ..rows.enqueue import PRIORITIES
from ..rows.loading import may_be_a_row
from ..rows.queries import by_index, unindexed
from ..rows.transient import retry_transaction
from ..table.layouts import LAYOUTS
from .base import BaseTransport, Batch, LeasedRow, M
from .engines import READS_ONLY

__all__ = ["LARGEST_PULL", "ShardLeaser"]

PRIORITIES_CACHED_FOR = 0.05
"""Seconds until the priorities in use are queried again."""

LARGEST_PULL = 500
"""Messages leased by one transaction."""

T = TypeVar("T")


class _Unanswered(NamedTuple):
    """Leases whose COMMIT was not answered yet; see :func:`.states.lease`."""

    ids: list[int]
    since: int
    jitter: int


class _CannotLoad(Exception):
    """Rows can't be loaded, for the reason that is the cause."""


class ShardLeaser(BaseTransport[M]):
    """Selects due rows, locks them, and postpones them as Vitess does.

    One priority at a time: within it the due rows are one range of ``poller_idx``. In a query for
    all priorities at once, MySQL would walk over every scheduled and every dead message first,
    because the index has the latest ``time_next`` in front.

    :param shard: the shard that the engine's connections talk to, if not the whole keyspace.
    :param is_interrupted: returns whether to lease nothing more, though a query is under way.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        shard: str | None = None,
        *,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(model, engine)
        self._shard = shard
        self._is_interrupted = is_interrupted
        self._priorities_in_use: list[int] = []
        self._priorities_until = 0.0
        layout = LAYOUTS[self._options.layout]
        self._has_priority = "priority" in layout.columns
        indexes = {index.name for index in layout.indexes}
        # next_idx finds what is due in all priorities at once, but only poller_idx has an order.
        self._polls_by_priority = "next_idx" not in indexes
        table, columns = self._table, self._table.c
        due = states.due_since(table)
        conditions = [states.is_unsettled(table), due]
        if self._has_priority:
            conditions.append(columns.priority == bindparam("_priority"))
        self._polling = (
            by_index(select(columns.id).where(*conditions).limit(1), table, "poller_idx")
            if self._polls_by_priority
            else by_index(
                select(columns.id).where(unindexed(columns.time_acked).is_(None), due).limit(1),
                table,
                "next_idx",
            )
        )
        self._unanswered: _Unanswered | None = None
        self._leasing, self._leasing_rows = (
            by_index(
                selecting.where(*conditions)
                .order_by(columns.time_next.desc())
                .limit(bindparam("_limit"))
                .with_for_update(skip_locked=True),
                table,
                "poller_idx" if self._has_priority else "next_idx",
            )
            for selecting in (
                self._select().add_columns(clock.database_now()),
                select(columns.id, columns.epoch, columns.time_next, clock.database_now()),
            )
        )

    def lease(self, limit: int, *, due_for: float = 0) -> Batch[M]:
        """Lease messages, 500 at most.

        :param limit: how many at most.
        :param due_for: seconds that they must have been due.
        """
        began = time.monotonic()
        some = min(limit, LARGEST_PULL), clock.to_nanoseconds(due_for)
        try:
            messages = retry_transaction(partial(self._lease_in_transaction, *some))
        except _CannotLoad:
            rows = retry_transaction(partial(self._lease_rows_in_transaction, *some))
            batch = self._load(rows, began, time.monotonic(), shard=self._shard)
        else:
            self._give_leases(messages, began, time.monotonic(), shard=self._shard)
            batch = Batch(messages, [])
        self._unanswered = None
        return batch

    def revoke_unanswered(self) -> None:
        """Undo the last :meth:`lease`, if it failed when it may have committed.

        Nobody has got those messages, so that they shouldn't wait for the end of their lease, and
        shouldn't count as handed out.
        """
        if self._unanswered is not None:
            retry_transaction(partial(self._revoke_in_transaction, self._unanswered))
            self._unanswered = None

    def _revoke_in_transaction(self, unanswered: _Unanswered) -> None:
        with self._engine.begin() as connection:
            statement = states.revoke(self._table, unanswered.since, unanswered.jitter)
            connection.execute(statement, {"_ids": unanswered.ids})

    def _lease_in_transaction(self, limit: int, due_for: int) -> list[M]:
        with self._engine.begin() as connection:

            def load(values: dict[str, Any]) -> list[Any]:
                try:
                    return self._read(connection, self._leasing, values)
                except Exception as error:
                    if not may_be_a_row(error):
                        raise
                    raise _CannotLoad from error

            found = self._collect_due(connection, load, limit, due_for)
            messages: list[M] = [message for message, _now in found]
            if found:
                self._postpone(connection, [message.id for message in messages], found[-1][-1])
        return messages

    def _lease_rows_in_transaction(self, limit: int, due_for: int) -> list[LeasedRow]:
        """Lease messages without reading their payload, which is loaded later."""
        with self._engine.begin() as connection:
            query = partial(connection.execute, self._leasing_rows)
            found = self._collect_due(connection, query, limit, due_for)
            rows = [LeasedRow(*row[:-1]) for row in found]
            if found:
                self._postpone(connection, [row.id for row in rows], found[-1][-1])
        return rows

    def _collect_due(
        self,
        connection: Connection,
        query: Callable[[dict[str, Any]], Iterable[T]],
        limit: int,
        due_for: int,
    ) -> list[T]:
        """Return what a query finds and locks, one priority after the other."""
        found: list[T] = []
        values = {"_due_for": due_for}
        for priority in self._priorities(connection):
            values |= {"_priority": priority, "_limit": limit - len(found)}
            found += query(values)
            if len(found) == limit:
                break
        return [] if self._is_interrupted() else found

    def _postpone(self, connection: Connection, ids: list[int], now: int) -> None:
        """Lease rows.

        :param now: the database's time, by which the end of the leases is known without asking.
        """
        jitter = random_jitter()
        connection.execute(states.lease(self._table, now, jitter), {"_ids": ids})
        self._unanswered = _Unanswered(ids, now, jitter)

    def has_due_messages(self) -> bool:
        """Return whether there are any. No insert has to wait for this."""
        with self._engine.connect().execution_options(**{READS_ONLY: True}) as connection:
            priorities = self._priorities(connection) if self._polls_by_priority else [0]
            values = [{"_due_for": 0, "_priority": priority} for priority in priorities]
            return any(connection.scalar(self._polling, value) is not None for value in values)

    def _priorities(self, connection: Connection) -> list[int]:
        """Return the priorities of unsettled messages, the most urgent first.

        Each is found by one step in the index, from the one before it.
        """
        if not self._has_priority:
            return [0]
        if time.monotonic() >= self._priorities_until:
            found: list[int] = []
            following = PRIORITIES[0]
            while (priority := self._next_priority(connection, following)) is not None:
                found.append(priority)
                following = priority + 1
            self._priorities_in_use = found
            self._priorities_until = time.monotonic() + PRIORITIES_CACHED_FOR
        return self._priorities_in_use

    def _next_priority(self, connection: Connection, least: int) -> int | None:
        columns = self._table.c
        statement = (
            select(columns.priority)
            .where(states.is_unsettled(self._table), columns.priority >= least)
            .order_by(columns.priority)
            .limit(1)
        )
        found: int | None = connection.scalar(by_index(statement, self._table, "poller_idx"))
        return found
