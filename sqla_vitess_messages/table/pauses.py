"""The small table that remembers which queues are paused, beside those that can be."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table

__all__ = ["PAUSES", "PAUSE_VINDEX", "pause_table"]

PAUSES = "message_queue_pauses"
"""The table's name. It has a row for each paused queue."""

PAUSE_VINDEX: tuple[tuple[str, ...], str] = (("queue",), "xxhash")
"""The columns that determine a row's shard in a sharded keyspace, and how."""

MAX_NAME = 64
"""The most characters that MySQL allows in a table's name."""


def pause_table(queue: Table) -> Table:
    """Return the table of pauses in a queue's metadata and schema, made when it is first needed."""
    key = PAUSES if queue.schema is None else f"{queue.schema}.{PAUSES}"
    if (found := queue.metadata.tables.get(key)) is not None:
        return found
    return Table(
        PAUSES,
        queue.metadata,
        Column("queue", String(MAX_NAME), primary_key=True),
        Column("time_paused", BigInteger, nullable=False),
        schema=queue.schema,
    )
