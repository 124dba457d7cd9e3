"""Count the messages of queues again and again, for the plots of the last hour."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from ... import clock
from ...logs import get_logger
from ...rows.message import queue_table
from ...rows.rates import Sample, take_sample
from ...rows.reasons import describe_error
from .pages import QueuePages
from .sessions import in_session

__all__ = ["HOUR", "INTERVAL", "History", "Sampler"]

log = get_logger(__name__)

HOUR = 3_600

INTERVAL = 5.0
"""Seconds between samples, and between refreshes of the page."""

SHARE = 0.05
"""The part of the time that may go into counting: large queues are counted less often."""


@dataclass
class History:
    """What is known of a queue."""

    view: QueuePages
    samples: deque[Sample] = field(default_factory=deque)
    """Those of the last hour, oldest first."""
    error: str | None = None
    """Why it can't be counted now."""


class Sampler:
    """Counts while somebody has looked within the last hour, in the event loop of the pages."""

    def __init__(self) -> None:
        self.histories: list[History] = []
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._looked = self._sampled = -float("inf")
        self._took = 0.0

    def add(self, view: QueuePages) -> None:
        """Count a queue, too."""
        if all(history.view is not view for history in self.histories):
            self.histories.append(History(view))

    async def look(self) -> list[History]:
        """Return what is known of each queue, after counting if that is long ago."""
        self._looked = time.monotonic()
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._lock = asyncio.Lock()
            self._task = loop.create_task(self._sample_while_looked_at())
        await self._sample(max_age=self._took / SHARE)
        return self.histories

    async def _sample_while_looked_at(self) -> None:
        while time.monotonic() - self._looked < HOUR:
            pause = max(INTERVAL, self._took / SHARE)
            await asyncio.sleep(pause)
            await self._sample(max_age=pause / 2)

    async def _sample(self, max_age: float) -> None:
        async with self._lock:
            started = time.monotonic()
            if started - self._sampled < max_age:
                return
            for history in self.histories:
                await _count(history)
            self._sampled = time.monotonic()
            self._took = self._sampled - started


async def _count(history: History) -> None:
    samples = history.samples
    before = samples[-1] if samples else None
    model = history.view.model
    try:
        sample = await in_session(history.view, lambda session: take_sample(model, session, before))
    except (SQLAlchemyError, OSError) as error:
        if history.error is None:
            queue = queue_table(model).name
            log.warning("could not count: %s", describe_error(error), extra={"queue": queue})
        history.error = describe_error(error)
        return
    history.error = None
    samples.append(sample)
    while samples[0].time < sample.time - HOUR * clock.NANOSECONDS:
        samples.popleft()
