"""Run a handler for each message of a queue, in coroutines.

.. code-block:: python

    async def send(message, session):
        session.add(Sent(address=message.address))

    asyncio.run(AsyncWorker(AsyncSubscriber(Mail, url), send, async_sessionmaker(engine)).run())
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, overload

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from ..errors import InvalidArgumentType
from ..receiving.arguments import check_result
from ..receiving.retries import RetryPolicy
from ..receiving.subscriber import M
from ..receiving.worker import BaseWorker
from ..runtime import Runtime
from .runtime import AsyncioRuntime
from .subscriber import AsyncSubscriber

__all__ = ["AsyncBatchHandler", "AsyncHandler", "AsyncWorker"]

AsyncHandler = Callable[[M, AsyncSession], Awaitable[object]]
"""Takes a message, and the session of the transaction."""

AsyncBatchHandler = Callable[[list[M], AsyncSession], Awaitable[object]]
"""Takes a list of messages, and the session of the transaction."""


class AsyncWorker(BaseWorker[M]):
    """Receives messages, and awaits a handler for each in a transaction that acks it.

    Like :class:`.Worker`, in one event loop. Handlers must not block it: that would hold up all of
    them, and the heartbeat that extends their leases.

    :param subscriber: opened and closed by the worker.
    :param handler: awaited as ``handler(message, session)``; in batch mode as
        ``handler(messages, session)``.
    :param session_factory: makes an AsyncSession, such as an ``async_sessionmaker``.
    :param concurrency: how many handlers run at a time.
    :param retry: whether and when a message whose handler failed is retried.
    :param batch_size: gives the handler up to so many messages at a time, for one transaction. When
        it fails, each message is handled alone, so that one can't hold up the others.
    :param shutdown_timeout: seconds, or a timedelta, to let running handlers finish at the end.
        Then they are cancelled, and their messages released.
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
    ) -> None:
        if not isinstance(subscriber, AsyncSubscriber):
            raise InvalidArgumentType(f"subscriber={subscriber!r}: expected an AsyncSubscriber")
        super().__init__(
            subscriber,
            handler,
            session_factory,
            concurrency=concurrency,
            retry=retry,
            batch_size=batch_size,
            shutdown_timeout=shutdown_timeout,
        )

    def _make_runtime(self) -> Runtime:
        return AsyncioRuntime()

    @contextmanager
    def _begin_handling(self) -> Iterator[tuple[Session, Callable[[Any], object]]]:
        session = self._session_factory()
        try:
            with session.sync_session.begin():
                # The task of this greenlet awaits the handler, as if there were no greenlet.
                yield (
                    session.sync_session,
                    lambda argument: check_result(await_only(self._handler(argument, session))),
                )
        finally:
            await_only(asyncio.shield(session.close()))

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        caught: list[signal.Signals] = []
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                # RuntimeError: not the main thread. NotImplementedError: Windows.
                with suppress(RuntimeError, ValueError, NotImplementedError):
                    loop.add_signal_handler(number, self._note_signal)
                    caught.append(number)
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _run_in_process(self) -> bool:
        asyncio.run(self.run())
        return self._signals < 2

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

    async def __aenter__(self) -> AsyncWorker[M]:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            await self.stop()
        else:
            # All of this has to be done, also when the caller is cancelled again.
            await asyncio.shield(greenlet_spawn(self._shut_down))
