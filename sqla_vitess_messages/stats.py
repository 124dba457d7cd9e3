"""How many messages a queue has in each state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, func, select

from . import clock
from .ddl import MYSQL, queue_table
from .leases import DEAD, Transactional, connection_of

if TYPE_CHECKING:
    from .mixin import MessageQueueMixin

__all__ = ["STATES", "QueueStats", "count"]

STATES = ("ready", "scheduled", "leased", "dead", "acked")
"""Of a message, as in :class:`QueueStats`."""


@dataclass(frozen=True)
class QueueStats:
    """Numbers of messages."""

    ready: int
    """Due, and waiting for a receiver."""
    scheduled: int
    """Not due yet, and never handed out."""
    leased: int
    """Handed out and not settled, or waiting for a retry."""
    dead: int
    """Failed for good."""
    acked: int
    """Acked and not purged yet."""
    oldest_ready_age: timedelta | None
    """How long the oldest ready message has been due; None when none is."""


def count(model: type[MessageQueueMixin], session: Transactional) -> QueueStats:
    """Count the messages of a queue; see :meth:`.MessageQueueMixin.stats`."""
    table = queue_table(model)
    due, epoch, now = table.c.time_next, table.c.epoch, clock.database_now()
    # An ack sets time_next to NULL, so next_idx has all that is asked for.
    ready = due <= now
    later = and_(due > now, due < DEAD)
    statement = select(
        func.count(case((ready, 1))),
        func.count(case((and_(later, epoch == 0), 1))),
        func.count(case((and_(later, epoch > 0), 1))),
        func.count(case((due == DEAD, 1))),
        func.count() - func.count(due),
        now - func.min(case((ready, due))),
    ).select_from(table)
    if any(index.name == "next_idx" for index in table.indexes):
        for dialect in MYSQL:
            statement = statement.with_hint(table, "FORCE INDEX (next_idx)", dialect)
    row = connection_of(model, session).execute(statement).one()
    ready_now, scheduled, leased, dead, acked, age = row
    oldest = None if age is None else timedelta(microseconds=int(age) / 1000)
    return QueueStats(ready_now, scheduled, leased, dead, acked, oldest)
