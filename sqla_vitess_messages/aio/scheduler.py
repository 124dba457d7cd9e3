"""Enqueue periodic messages in an event loop.

.. code-block:: python

    asyncio.run(AsyncScheduler(async_sessionmaker(engine), [nightly, poll]).run())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from ..periodic.periodic import Periodic
from ..periodic.scheduler import BaseScheduler
from .service import AsyncioService, begin_session

__all__ = ["AsyncScheduler"]


class AsyncScheduler(AsyncioService, BaseScheduler):
    """Enqueues periodic messages, each at its ticks.

    Like :class:`.Scheduler`, in one event loop.

    :param session_factory: makes an AsyncSession, such as an ``async_sessionmaker``.
    :param periodic: the :class:`.Periodic` objects, with different names. Their factories are
        ordinary functions.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self, session_factory: Callable[[], AsyncSession], periodic: Iterable[Periodic]
    ) -> None:
        super().__init__(session_factory, periodic)

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        with begin_session(self._session_factory) as session:
            yield session.sync_session

    async def run(self) -> bool:
        """Schedule until SIGTERM, SIGINT or :meth:`request_stop`, or until it is cancelled.

        Signals are only noticed in the main thread, and taken from others that handle them: inside
        a server use ``async with``.

        :return: whether the running transaction ended in time.
        :raises QueueNotFound: when the table that remembers the last ticks is missing.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        return await greenlet_spawn(self._run)

    async def start(self) -> None:
        """Begin to schedule, in a task of its own.

        :raises QueueNotFound: when the table that remembers the last ticks is missing.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        await greenlet_spawn(self._start)

    async def stop(self) -> bool:
        """Enqueue nothing more, and wait for the end of the running transaction.

        :return: whether it ended in time.
        :raises BaseException: an unexpected error that has ended the scheduler.
        """
        return await greenlet_spawn(self._stop)
