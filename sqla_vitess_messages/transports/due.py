"""Find the due rows of one table on one server, and lock them: those due for longest first.

One priority at a time: within it the due rows are one range of ``poller_idx``. In a query for all
priorities at once, MySQL would walk over every scheduled and every dead message first, because the
index has the latest ``time_next`` in front.

For the same reason MySQL can't read the due rows from the oldest on: of a range in a descending
index it only reads backwards what it has sorted. So it is first asked where the range of the oldest
rows ends, which takes as many steps in the index, and then for the rows in that range.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import BigInteger, Connection, Select, Table, and_, bindparam, select

from .. import clock
from ..rows import states
from ..rows.enqueue import PRIORITIES
from ..rows.queries import by_index, unindexed
from ..table.layouts import LAYOUTS
from ..table.options import queue_options

__all__ = ["DueRows", "Locking"]

PRIORITIES_CACHED_FOR = 0.05
"""Seconds until the priorities in use are queried again."""

EARLIEST = -(2**63)
"""The least ``time_next``."""

WIDENING = 4
"""How many times more rows the next range has, when others have locked rows of the one before."""

T = TypeVar("T")


class Locking(NamedTuple):
    """The statements that select due rows of one priority, and lock them.

    :param due: selects those whose ``time_next`` is from ``_first`` to now.
    :param within: selects those whose ``time_next`` is from ``_first`` to ``_last``.
    """

    due: Select[Any]
    within: Select[Any]


class DueRows:
    """The due rows of one table, on one server.

    :param vitess: whether the server is a vtgate.
    """

    def __init__(self, table: Table, *, vitess: bool) -> None:
        self._table = table
        self._vitess = vitess
        self._priorities_in_use: list[int] = []
        self._priorities_until = 0.0
        self._backlogs: set[int] = set()
        layout = LAYOUTS[queue_options(table).layout]
        self._has_priority = "priority" in layout.columns
        indexes = {index.name for index in layout.indexes}
        # next_idx finds what is due in all priorities at once, but only poller_idx has an order.
        self._polls_by_priority = "next_idx" not in indexes
        columns = table.c
        self._conditions = [states.is_unsettled(table)]
        if self._has_priority:
            self._conditions.append(columns.priority == bindparam("_priority"))
        waiting = (
            select(columns.time_next - clock.database_now()).order_by(columns.time_next).limit(1)
        )
        self._polling = (
            by_index(waiting.where(*self._conditions), table, "poller_idx")
            if self._polls_by_priority
            else by_index(
                # Those that are acked have no time_next, and would come first.
                waiting.where(unindexed(columns.time_acked).is_(None), columns.time_next >= 0),
                table,
                "next_idx",
            )
        )
        if self._has_priority:
            self._finding_priority = by_index(
                select(columns.priority)
                .where(states.is_unsettled(table), columns.priority >= bindparam("_least"))
                .order_by(columns.priority)
                .limit(1),
                table,
                "poller_idx",
            )
        self._measuring = by_index(
            select(columns.time_next, clock.database_now())
            .where(*self._conditions)
            .order_by(columns.time_next)
            .limit(2)
            .offset(bindparam("_offset")),
            table,
            "poller_idx",
        )

    def locking(self, selecting: Select[Any]) -> Locking:
        """Return the statements for what is to be selected of the rows."""
        times = self._table.c.time_next
        first, last = (bindparam(name, type_=BigInteger) for name in ("_first", "_last"))
        statements = (
            by_index(
                selecting.where(*self._conditions, condition)
                .order_by(times.desc() if self._has_priority else times)
                .limit(bindparam("_limit"))
                .with_for_update(skip_locked=True),
                self._table,
                "poller_idx" if self._has_priority else "next_idx",
            )
            for condition in (
                and_(times >= first, states.due_since(self._table)),
                times.between(first, last),
            )
        )
        return Locking(*statements)

    def seconds_until_due(self, connection: Connection) -> float:
        """Return after how many seconds a message is due: 0 if one is, infinite if there is none.

        No insert has to wait for this.
        """
        self._priorities_until = 0.0  # A message of another priority may have come.
        priorities = self._priorities(connection) if self._polls_by_priority else [0]
        waits = [
            connection.scalar(self._polling, {"_priority": priority}) for priority in priorities
        ]
        first = min((wait for wait in waits if wait is not None), default=inf)
        return max(first / clock.NANOSECONDS, 0.0)

    def lock(
        self,
        connection: Connection,
        query: Callable[[Select[Any], dict[str, Any]], Iterable[T]],
        locking: Locking,
        limit: int,
        due_for: int,
    ) -> list[T]:
        """Lock rows, and return what is selected of them, in order.

        :param query: executes a statement with its parameters.
        :param locking: see :meth:`locking`.
        :param limit: how many rows at most.
        :param due_for: nanoseconds that they must have been due.
        """
        found: list[T] = []
        for priority in self._priorities(connection):
            some = self._lock_of_priority(
                connection, query, locking, limit - len(found),
                {"_priority": priority, "_due_for": due_for, "_first": EARLIEST},
            )  # fmt: skip
            found += some
            if len(found) == limit:
                break
        return found

    def _lock_of_priority(
        self,
        connection: Connection,
        query: Callable[[Select[Any], dict[str, Any]], Iterable[T]],
        locking: Locking,
        limit: int,
        values: dict[str, Any],
    ) -> list[T]:
        if not self._has_priority:
            return list(query(locking.due, values | {"_limit": limit}))
        priority = values["_priority"]
        # With Vitess, a transaction's first statement is the one whose result is small.
        if not (self._vitess or priority in self._backlogs):
            found = list(query(locking.due, values | {"_limit": limit}))
            if len(found) < limit:
                return found[::-1]
            self._backlogs.add(priority)  # Others may have been due for longer.
        found = []
        for range_ in self._oldest(connection, limit, values):
            statement = locking.within if "_last" in range_ else locking.due
            of_range = values | range_ | {"_limit": limit - len(found)}
            found += list(query(statement, of_range))[::-1]
            if len(found) == limit:
                return found
        self._backlogs.discard(priority)
        return found

    def _oldest(
        self, connection: Connection, count: int, values: dict[str, Any]
    ) -> Iterator[dict[str, int]]:
        """Yield ranges of ``time_next``, each later than the one before, to all that is due.

        The first has so many rows, unless there are more with the ``time_next`` of the last one:
        then the second has these.
        """
        first = EARLIEST
        while True:
            offset = {"_offset": count - 1}
            times = [tuple(row) for row in connection.execute(self._measuring, values | offset)]
            if not times or times[0][0] >= times[0][1] - values["_due_for"]:
                yield {"_first": first}
                return
            last = times[0][0]
            is_split = len(times) > 1 and times[1][0] == last
            if is_split:
                yield {"_first": first, "_last": last - 1}
                yield {"_first": last, "_last": last}
            else:
                yield {"_first": first, "_last": last}
            first = last + 1
            count *= WIDENING

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
        found: int | None = connection.scalar(self._finding_priority, {"_least": least})
        return found
