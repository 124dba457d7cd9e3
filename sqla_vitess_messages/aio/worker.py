"""Run a handler for each message of a queue, in coroutines.

.. code-block:: python

    async def send(message, session):
        session.add(Sent(address=message.address))

    asyncio.run(AsyncWorker(AsyncSubscriber(Mail, url), send, async_sessionmaker(engine)).run())
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, overload

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from ..arguments import check_result
from ..errors import InvalidArgumentType
from ..periodic.periodic import Periodic
from ..receiving.retries import RetryPolicy
from ..receiving.subscriber import M
from ..receiving.worker import BaseWorker
from ..shown import shown
from .service import AsyncioService, begin_session
from .subscriber import AsyncSubscriber

__all__ = ["AsyncBatchHandler", "AsyncHandler", "AsyncWorker", "begin_handling"]

AsyncHandler = Callable[[M, AsyncSession], Awaitable[object]]
"""Takes a message, and the session of the transaction."""

AsyncBatchHandler = Callable[[list[M], AsyncSession], Awaitable[object]]
"""Takes a list of messages, and the session of the transaction."""


@contextmanager
def begin_handling(
    session_factory: Callable[[], AsyncSession], handler: Callable[..., Awaitable[object]]
) -> Iterator[tuple[Session, Callable[[Any], object]]]:
    """Begin the transaction of a handler; see :data:`.handling.BeginHandling`."""
    with begin_session(session_factory) as session:
        # The task of this greenlet awaits the handler, as if there were no greenlet.
        yield (
            session.sync_session,
            lambda argument: check_result(await_only(handler(argument, session))),
        )


class AsyncWorker(AsyncioService, BaseWorker[M]):
    """Receives messages, and awaits a handler for each in a transaction that acks it.

    Like :class:`.Worker`, in one event loop. Handlers must not block it: that would hold up all of
    them, and the heartbeat that extends their leases.

    :param subscriber: opened and closed by the worker. Unless it has a ``max_concurrency``, it
        holds twice as many messages as the handlers have at a time: as many again wait for them.
    :param handler: awaited as ``handler(message, session)``; in batch mode as
        ``handler(messages, session)``.
    :param session_factory: makes an AsyncSession, such as an ``async_sessionmaker``.
    :param concurrency: how many handlers run at a time.
    :param retry: whether and when a message whose handler failed is retried. Default:
        ``RetryPolicy()``, with 10 deliveries at most.
    :param batch_size: gives the handler up to so many messages at a time, for one transaction. When
        it fails, each message is handled alone, so that one can't hold up the others.
    :param shutdown_timeout: seconds, or a timedelta, to let running handlers finish at the end.
        Then they are cancelled, and their messages released.
    :param periodic: :class:`.Periodic` objects that the worker schedules beside its work, as an
        :class:`AsyncScheduler` does. Their factories are ordinary functions.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    _is_async = True

    @overload
    def __init__(
        self,
        subscriber: AsyncSubscriber[M],
        handler: AsyncHandler[M],
        session_factory: Callable[[], AsyncSession],
        *,
        concurrency: int = ...,
        retry: RetryPolicy | None = ...,
        batch_size: None = ...,
        shutdown_timeout: float | timedelta = ...,
        periodic: Iterable[Periodic] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        subscriber: AsyncSubscriber[M],
        handler: AsyncBatchHandler[M],
        session_factory: Callable[[], AsyncSession],
        *,
        concurrency: int = ...,
        retry: RetryPolicy | None = ...,
        batch_size: int,
        shutdown_timeout: float | timedelta = ...,
        periodic: Iterable[Periodic] = ...,
    ) -> None: ...

    def __init__(
        self,
        subscriber: AsyncSubscriber[M],
        handler: AsyncHandler[M] | AsyncBatchHandler[M],
        session_factory: Callable[[], AsyncSession],
        *,
        concurrency: int = 8,
        retry: RetryPolicy | None = None,
        batch_size: int | None = None,
        shutdown_timeout: float | timedelta = 30.0,
        periodic: Iterable[Periodic] = (),
    ) -> None:
        if not isinstance(subscriber, AsyncSubscriber):
            raise InvalidArgumentType(
                f"subscriber={shown(subscriber)}: expected an AsyncSubscriber"
            )
        super().__init__(
            subscriber,
            handler,
            session_factory,
            concurrency=concurrency,
            retry=retry,
            batch_size=batch_size,
            shutdown_timeout=shutdown_timeout,
            periodic=periodic,
        )

    def _begin_handling(
        self,
    ) -> AbstractContextManager[tuple[Session, Callable[[Any], object]]]:
        return begin_handling(self._session_factory, self._handler)

    async def run(self) -> bool:
        """Work until SIGTERM, SIGINT or :meth:`request_stop`; then finish the running handlers.

        A second signal ends it at once. Cancelling this coroutine cancels the handlers, whose
        transactions roll back, and releases all messages. Signals are only noticed in the main
        thread, and taken from others that handle them: inside a server use ``async with``.

        :return: whether all handlers finished in time.
        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        return await greenlet_spawn(self._run)

    async def start(self) -> None:
        """Begin to work, in tasks of the worker's own.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        await greenlet_spawn(self._start)

    async def stop(self) -> bool:
        """Receive no more messages, release those not begun, and wait for running handlers.

        :return: whether all of them finished in time.
        :raises BaseException: the error that ended the subscriber, if one has.
        """
        return await greenlet_spawn(self._stop)
