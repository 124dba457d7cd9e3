"""Count the messages of queues, and what became of them since they were counted before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ..mixin import MessageQueueMixin
from ..rows.message import queue_table
from ..rows.rates import Sample, take_sample
from ..table.options import queue_options

__all__ = ["Counts", "QueueCounts", "count_queues"]


@dataclass(frozen=True)
class QueueCounts:
    """What is known of a queue at a moment."""

    sample: Sample
    is_paused: bool

    @property
    def enqueued_per_second(self) -> float:
        """Since it was counted before."""
        return self.sample.enqueued / max(self.sample.seconds, 0.001)

    @property
    def settled_per_second(self) -> float:
        """Since it was counted before."""
        return self.sample.settled / max(self.sample.seconds, 0.001)


Counts = dict[str, QueueCounts]
"""The counts of queues by their names."""


def count_queues(
    models: Iterable[type[MessageQueueMixin]], session: Session, before: Counts | None
) -> Counts:
    """Count the messages of queues.

    :param before: the last counts.
    """
    counts = {}
    for model in models:
        table = queue_table(model)
        last = None if before is None else before[table.name].sample
        sample = take_sample(model, session, last)
        is_paused = queue_options(table).pausable and model.is_paused(session)
        counts[table.name] = QueueCounts(sample, is_paused)
    return counts
