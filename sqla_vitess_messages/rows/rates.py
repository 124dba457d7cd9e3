"""How fast a queue fills and empties, from counts that are made again and again."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from .. import clock
from .message import Message, queue_table
from .queries import by_index, has_index
from .settle import SessionOrConnection, connection_of
from .stats import QueueStats, count

__all__ = ["Sample", "take_sample"]


@dataclass(frozen=True)
class Sample:
    """The numbers of messages at a moment, and what became of them since the sample before."""

    time: int
    """In ns since 1970, by this process's clock."""
    stats: QueueStats
    seconds: float = 0.0
    """Since the sample before; 0 for the first one."""
    enqueued: int = 0
    settled: int = 0
    """How many were acked or died."""


def take_sample(
    model: type[Message], session: SessionOrConnection, before: Sample | None
) -> Sample:
    """Count the messages of a queue.

    Acked messages are deleted after a while, and so are counted by the time of their ack. As many
    have been enqueued as have been acked and are unsettled in addition. Messages that were
    cancelled or purged since are missing in that.

    :param session: a Session or Connection, whose transaction has not read before.
    :param before: the last sample, by the same process.
    """
    now = clock.now()
    stats = count(model, session)
    if before is None:
        return Sample(now, stats)
    acked = _acked_since(model, session, before, stats)
    grown = _unsettled(stats) - _unsettled(before.stats)
    return Sample(
        time=now,
        stats=stats,
        seconds=(now - before.time) / clock.NANOSECONDS,
        enqueued=max(0, grown + acked),
        settled=acked + max(0, stats.dead - before.stats.dead),
    )


def _unsettled(stats: QueueStats) -> int:
    return stats.ready + stats.scheduled + stats.leased + stats.dead


def _acked_since(
    model: type[Message], session: SessionOrConnection, before: Sample, stats: QueueStats
) -> int:
    table = queue_table(model)
    if not has_index(table, "poller_idx"):  # Which begins with time_acked.
        return max(0, stats.acked - before.stats.acked)
    acked = select(func.count()).select_from(table).where(table.c.time_acked > before.time)
    statement = by_index(acked, table, "poller_idx")
    found: int = connection_of(model, session, statement).execute(statement).scalar_one()
    return found
