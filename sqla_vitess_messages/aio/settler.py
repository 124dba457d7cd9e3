"""Settle for handlers without a transaction of their own, in a task."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Generic

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from ..base_subscriber import M
from ..errors import SubscriberClosed
from ..settler import LARGEST_GROUP, LINGER, How, Settlement, settle_together

__all__ = ["AsyncSettler"]


class AsyncSettler(Generic[M]):
    """Groups the settlements of one queue and commits them.

    :param engine: where to commit: the synchronous face of an AsyncEngine.
    """

    def __init__(self, model: type[M], engine: Engine) -> None:
        self._model = model
        self._engine = engine
        self._waiting: asyncio.Queue[Settlement | None] = asyncio.Queue()
        self._closed = False
        self._task = asyncio.create_task(self._run(), name="AsyncSettler")

    def ack(self, message: M) -> asyncio.Future[None]:
        """Ack with the next group."""
        return self._add(message, How("ack"))

    def fail(self, message: M, reason: str | None) -> asyncio.Future[None]:
        """Fail with the next group."""
        return self._add(message, How("fail", reason=reason))

    def retry(self, message: M, delay: float | timedelta | None) -> asyncio.Future[None]:
        """Retry with the next group."""
        return self._add(message, How("retry", delay=delay))

    async def flush(self, timeout: float | None) -> bool:
        """Wait until all settlements so far are committed or have failed."""
        _done, pending = await asyncio.wait([self._add(None, How("ack"))], timeout=timeout)
        return not pending

    async def close(self) -> None:
        """Settle what waits, and end the task."""
        self._closed = True
        self._waiting.put_nowait(None)
        await self._task

    def _add(self, message: M | None, how: How) -> asyncio.Future[None]:
        if self._closed:
            raise SubscriberClosed("the subscriber is closing")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(Settlement(message, how, done))
        return done

    async def _run(self) -> None:
        more = True
        while more:
            group, more = await self._next_group()
            settlements = [item for item in group if item.message is not None]
            await greenlet_spawn(settle_together, self._model, self._engine, settlements)
            for item in group:
                item.succeed()  # What is left are marks.

    async def _next_group(self) -> tuple[list[Settlement], bool]:
        """Wait for a group; the flag says whether another may follow."""
        item = await self._waiting.get()
        group: list[Settlement] = []
        if item is not None and self._waiting.empty():
            await asyncio.sleep(LINGER)
        while item is not None:
            group.append(item)
            if len(group) == LARGEST_GROUP or self._waiting.empty():
                return group, True
            item = self._waiting.get_nowait()
        return group, False
