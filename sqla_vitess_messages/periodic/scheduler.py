"""Enqueue periodic messages in a process of its own, or in a thread.

.. code-block:: python

    Scheduler(sessionmaker(engine), [nightly, poll]).run()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from ..arguments import check_function
from ..errors import InvalidArgument
from ..service import BaseService, ThreadService
from ..sessions import begin_session
from .periodic import Periodic
from .ticker import Ticker

__all__ = ["BaseScheduler", "Scheduler"]


class BaseScheduler(BaseService):
    """What the schedulers for threads and for asyncio have in common."""

    def __init__(self, session_factory: Callable[[], Any], periodic: Iterable[Periodic]) -> None:
        check_function("session_factory", session_factory)
        self._session_factory = session_factory
        self._ticker = Ticker(periodic, self._begin)
        if not self._ticker.periodic:
            raise InvalidArgument("periodic=[]: expected at least one Periodic")
        super().__init__()

    def _begin(self) -> Any:
        """See :data:`.ticker.BeginTransaction`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(one.name for one in self.periodic)}>"

    @property
    def periodic(self) -> list[Periodic]:
        """What it schedules."""
        return self._ticker.periodic

    def _start(self) -> None:
        self._runtime = runtime = self._make_runtime()
        self._changed = runtime.condition(self._lock)
        self._error = None
        self._ticker.prepare()
        self._ticker.start(runtime, self._end_with)

    def _stop(self) -> bool:
        has_ended = self._ticker.stop()
        if self._error is not None:
            raise self._error
        return has_ended

    def _shut_down(self) -> None:
        self._ticker.stop()
        self._stop_requested = False


class Scheduler(ThreadService, BaseScheduler):
    """Enqueues periodic messages, each at its ticks.

    Run as many as you like, in as many processes: each tick is enqueued once. There is no leader,
    so nothing has to be elected when one of them dies. All times are those of the database's clock.

    :param session_factory: makes a session, such as a ``sessionmaker``.
    :param periodic: the :class:`Periodic` objects, with different names.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self, session_factory: Callable[[], Session], periodic: Iterable[Periodic]
    ) -> None:
        super().__init__(session_factory, periodic)

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        with begin_session(self._session_factory) as session:
            yield session

    def run(self) -> bool:
        """Schedule until SIGTERM, SIGINT or :meth:`request_stop`.

        Signals are only noticed in the main thread.

        :return: whether the running transaction ended in time.
        :raises QueueNotFound: when the table that remembers the last ticks is missing.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        return self._run()

    def start(self) -> None:
        """Begin to schedule, in a thread of its own.

        :raises QueueNotFound: when the table that remembers the last ticks is missing.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        self._start()

    def stop(self) -> bool:
        """Enqueue nothing more, and wait for the end of the running transaction.

        :return: whether it ended in time.
        :raises BaseException: an unexpected error that has ended the scheduler.
        """
        return self._stop()
