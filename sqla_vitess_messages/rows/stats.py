"""How many messages a queue has in each state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import case, func, select

from .. import clock
from . import states
from .message import Message, queue_table
from .queries import by_index, has_index
from .settle import SessionOrConnection, connection_of

__all__ = ["STATES", "QueueStats", "count"]

STATES = ("ready", "scheduled", "leased", "dead", "acked")
"""The states of a message, as in :class:`QueueStats`."""


@dataclass(frozen=True)
class QueueStats:
    """Numbers of messages."""

    ready: int
    """Due, and waiting for a receiver."""
    scheduled: int
    """Not due yet, and never handed out."""
    leased: int
    """Handed out and not settled, or waiting for a retry: ``Model.state`` tells them apart."""
    dead: int
    """Failed for good."""
    acked: int
    """Acked and not purged yet."""
    oldest_ready_age: timedelta | None
    """How long the oldest ready message has been due; None when none is."""


def count(model: type[Message], session: SessionOrConnection) -> QueueStats:
    """Count the messages of a queue; see :meth:`.MessageQueueMixin.stats`."""
    table = queue_table(model)
    due = table.c.time_next
    # An ack sets time_next to NULL, so next_idx has every column that is read.
    statement = select(
        func.count(case((states.is_ready(table), 1))),
        func.count(case((states.is_scheduled(table), 1))),
        func.count(case((states.is_leased(table), 1))),
        func.count(case((states.is_dead(table), 1))),
        func.count() - func.count(due),
        # vtgate can't evaluate the time itself, so the difference is the shards' to aggregate.
        func.max(case((states.is_ready(table), clock.database_now() - due))),
    ).select_from(table)
    # Whether a replaced message is leased, is in no index.
    if has_index(table, "next_idx") and not states.is_replaceable(table):
        statement = by_index(statement, table, "next_idx")
    row = connection_of(model, session, statement).execute(statement).one()
    ready, scheduled, leased, dead, acked, age = row
    oldest = None if age is None else timedelta(microseconds=int(age) / 1000)
    return QueueStats(ready, scheduled, leased, dead, acked, oldest)
