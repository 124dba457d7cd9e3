"""Run a handler for each message of a queue, in coroutines.

.. code-block:: python

    async def send(message, session):
        session.add(Sent(address=message.address))

    asyncio.run(AsyncWorker(AsyncSubscriber(Mail, url), send, async_sessionmaker(engine)).run())
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from ..base_subscriber import M
from ..base_worker import BaseWorker
from ..deadlocks import ATTEMPTS, is_deadlock
from ..errors import AlreadySettled, InvalidArgumentType, LeaseLost, SubscriberClosed
from ..heartbeat import Watchlist
from ..leases import lease_of
from ..retries import RetryPolicy, Verdict
from .subscriber import AsyncSubscriber

__all__ = ["AsyncWorker"]

log = logging.getLogger(__name__)

Handler = Callable[[Any, AsyncSession], Awaitable[object]]
"""Takes a message, or in batch mode a list of them, and the session of the transaction."""


class AsyncWorker(BaseWorker[M]):
    """Receives messages, and awaits a handler for each in a transaction that acks it.

    As :class:`.Worker`, in one event loop. Handlers must not block it: that would hold up all of
    them, and the heartbeat that keeps their leases.

    :param subscriber: opened and closed by the worker.
    :param handler: awaited as ``handler(message, session)``; in batch mode as
        ``handler(messages, session)``.
    :param session_factory: makes an AsyncSession, such as an ``async_sessionmaker``.
    :param concurrency: how many handlers run at a time.
    :param retry: what becomes of a message whose handler failed.
    :param batch_size: gives the handler up to so many messages at a time, for one transaction. When
        it fails, each message is handled alone, so that one can't hold up the others.
    :param shutdown_timeout: seconds, or a timedelta, to let running handlers finish at the end.
        Then they are cancelled, and their messages given back.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        subscriber: AsyncSubscriber[M],
        handler: Handler,
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
        self._subscriber = subscriber
        self._watchlist: Watchlist[M] = Watchlist()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._heartbeat: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()

    async def run(self) -> bool:
        """Work until SIGTERM, SIGINT or :meth:`request_stop`; then finish what runs.

        A second signal ends it at once. Cancelling this coroutine cancels the handlers, whose
        transactions roll back, and gives all messages back. Signals are only seen in the main
        thread, and taken from whoever else listens to them: inside a server use ``async with``.

        :return: whether all handlers finished in time.
        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        self._signals = 0
        with self._catch_signals():
            async with self:
                stopping = asyncio.create_task(self._stop.wait())
                first: set[asyncio.Task[Any]] = {stopping, *self._tasks}
                try:
                    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stopping.cancel()
                return await self.stop()

    def run_until_signal(self) -> bool:
        """Run an event loop with :meth:`run`, for a process that does nothing else.

        :return: False after a second signal.
        """
        asyncio.run(self.run())
        return self._signals < 2

    async def start(self) -> None:
        """Begin to work, in tasks of the worker's own.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        if self._tasks:
            return
        await self._subscriber.open()
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self.concurrency)]
        self._heartbeat = asyncio.create_task(self._beat())

    def request_stop(self) -> None:
        """Let :meth:`run` come to its end, from any thread."""
        if self._loop is None:
            self._stop.set()
        else:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def stop(self) -> bool:
        """Take no more messages, give back those not begun, and wait for running handlers.

        :return: whether all of them finished in time.
        :raises BaseException: what has ended the subscriber, if it has.
        """
        self._subscriber.stop_receiving()
        running = [task for task in self._tasks if not task.done()]
        at_once = asyncio.create_task(self._at_once.wait())
        everything: asyncio.Future[Any] = asyncio.gather(*running, return_exceptions=True)
        ends: set[asyncio.Future[Any]] = {at_once, everything}
        await asyncio.wait(ends, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        if unfinished := sum(not task.done() for task in running):
            self._note_unfinished(unfinished)
        ended = self._tasks
        await self._end()
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return not unfinished

    async def __aenter__(self) -> AsyncWorker[M]:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None and self._tasks:
            await self.stop()
        # Nothing may be left behind, also when the caller is cancelled.
        await asyncio.shield(self._end())

    async def _end(self) -> None:
        """Cancel what still runs, and close."""
        tasks, self._tasks = self._tasks, []
        if self._heartbeat is None:
            return
        heartbeat, self._heartbeat = self._heartbeat, None
        self._subscriber.stop_receiving()
        for task in (heartbeat, *tasks):
            task.cancel()
        await asyncio.gather(heartbeat, *tasks, return_exceptions=True)
        await self._subscriber.close()
        self._loop = None
        # An event belongs to the loop in which it was awaited.
        self._stop, self._at_once = asyncio.Event(), asyncio.Event()

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

    def _note_signal(self) -> None:
        self._signals += 1
        (self._stop if self._signals == 1 else self._at_once).set()

    async def _work(self) -> None:
        while not self._stop.is_set():
            try:
                messages = await self._subscriber.get_many(self._batch_size or 1)
            except SubscriberClosed:
                return
            with self._watchlist.watch(messages):
                try:
                    await self._process(messages)
                except asyncio.CancelledError:
                    await asyncio.shield(self._give_back(messages))
                    raise

    async def _process(self, messages: Sequence[M]) -> None:
        fresh: list[M] = []
        for message in messages:
            if verdict := self._judge_unhandled(message):
                await self._settle(message, verdict)
            else:
                fresh.append(message)
        if len(fresh) > 1:
            try:
                await self._handle(fresh)
            except Exception as error:  # noqa: BLE001  # Each alone will show which it was.
                self._note_batch_error(error)
            else:
                return
        for message in fresh:
            await self._handle_one(message)

    async def _handle_one(self, message: M) -> None:
        try:
            await self._handle([message])
        except (AlreadySettled, LeaseLost) as error:
            self._note_lost(message, error)
        except Exception as error:  # noqa: BLE001  # A task must survive its handlers.
            await self._settle(message, self._judge(message, error))

    async def _handle(self, messages: Sequence[M]) -> None:
        """Await the handler and ack, in one transaction: again, if it met a deadlock."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._handle_once(messages)
            except DBAPIError as error:
                if attempt == ATTEMPTS or not is_deadlock(error):
                    raise
            else:
                return

    async def _handle_once(self, messages: Sequence[M]) -> None:
        try:
            async with self._session_factory() as session, session.begin():
                await self._handler(self._argument(messages), session)
                self._watchlist.pause(messages)
                await session.run_sync(self._model.ack_all, messages)
        except BaseException:
            self._watchlist.resume(messages)
            raise

    async def _settle(self, message: M, verdict: Verdict) -> None:
        try:
            self._watchlist.pause([message])
            async with self._session_factory() as session, session.begin():
                if verdict.delay is None:
                    await session.run_sync(message.fail, verdict.reason)
                else:
                    await session.run_sync(message.retry, verdict.delay)
        except LeaseLost as error:
            self._note_lost(message, error)
        except Exception as error:  # noqa: BLE001  # Its lease will end.
            self._note_unsettled(message, error)

    async def _give_back(self, messages: Sequence[M]) -> None:
        """Let others have messages at once whose handlers were cancelled."""
        self._watchlist.resume(messages)
        for message in messages:
            if (lease := lease_of(message)) is None or not lease.settled:
                await self._settle(message, Verdict(0, "cancelled"))

    async def _beat(self) -> None:
        """Extend the leases of what handlers work on, three times in ``ack_wait``."""
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            if watched := self._watchlist.to_extend():
                try:
                    lost = await self._subscriber.extend(watched, self._ack_wait)
                    self._watchlist.note_lost(lost)
                except Exception as error:  # noqa: BLE001  # The next beat may succeed.
                    log.warning("leases could not be extended: %s", error)
