"""How many messages a queue has in each state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import case, func, select

from .. import clock
from ..table.layouts import LAYOUTS
from ..table.options import queue_options
from . import states
from .message import Message, queue_table
from .queries import by_index
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
    """Handed out and not settled, or waiting for a retry."""
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
        clock.database_now() - func.min(case((states.is_ready(table), due))),
    ).select_from(table)
    layout = LAYOUTS[queue_options(table).layout]
    if any(spec.name == "next_idx" for spec in layout.indexes):
        statement = by_index(statement, table, "next_idx")
    row = connection_of(model, session, statement).execute(statement).one()
    ready, scheduled, leased, dead, acked, age = row
    oldest = None if age is None else timedelta(microseconds=int(age) / 1000)
    return QueueStats(ready, scheduled, leased, dead, acked, oldest)
