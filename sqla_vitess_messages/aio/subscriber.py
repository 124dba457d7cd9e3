"""Receive messages in coroutines.

.. code-block:: python

    async with AsyncSubscriber(Mail, "sqlite+aiosqlite:///app.db") as subscriber:
        async for message in subscriber:
            async with AsyncSession(engine) as session, session.begin():
                ...                                   # the effect
                await session.run_sync(message.ack)   # commits with it, or not at all
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Literal

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from .. import leases
from ..base_subscriber import (
    LONGEST_BACKOFF,
    BaseSubscriber,
    M,
    check_n,
    lost_connection_errors,
)
from ..events import Event, Reconnected, Reconnecting
from ..leases import Lease, lease_of
from ..transports import Transport, make_transport
from ..transports.factory import check_transport
from .changes import Changes
from .engine import AsyncBind, call, own_async_engine
from .settler import AsyncSettler

__all__ = ["AsyncSubscriber"]

log = logging.getLogger(__name__)

AsyncTransportName = Literal["auto", "grpc", "pull"]

CLOSE_WITHIN = 1.8
"""Seconds that :meth:`AsyncSubscriber.close` waits for the server."""


class AsyncSubscriber(BaseSubscriber[M]):
    """Receives the messages of one queue, in the event loop that opens it.

    :param model: the queue's class.
    :param bind: a database URL with an asyncio driver, or an AsyncEngine whose settings to copy.
        Either way the subscriber has connections of its own, and none before :meth:`open`.
    :param max_concurrency: how many received messages may be unsettled at a time, those waiting
        in the subscriber included.
    :param transport: ``"pull"``, ``"grpc"`` (Vitess only), or ``"auto"``: ``"grpc"`` where vtgate's
        gRPC address is given, by ``bind`` or ``grpc``, else ``"pull"``.
    :param grpc: where to stream from, beside a bind that speaks the MySQL protocol: vtgate's
        ``host:port`` for gRPC, or a URL such as ``vitess+grpc://user@host:15991/keyspace``. What
        it leaves out is as in ``bind``.
    :param poll_interval: seconds, or a timedelta, between two looks at an idle queue, at most.
        Doesn't concern a stream.
    :param max_attempts: how often a message may have been handed out; one that comes once more is
        dead. Default: no limit.
    :param shards: in a sharded keyspace, the shards to receive from: names or key ranges such as
        ``["-80"]``. Default: all.
    :param on_event: called with each :class:`.events.Event`, and soon done.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        model: type[M],
        bind: AsyncBind,
        *,
        max_concurrency: int = 100,
        transport: AsyncTransportName = "auto",
        grpc: str | URL | None = None,
        poll_interval: float | timedelta = 0.1,
        max_attempts: int | None = None,
        shards: Sequence[str] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        super().__init__(
            model,
            max_concurrency=max_concurrency,
            poll_interval=poll_interval,
            max_attempts=max_attempts,
            shards=shards,
            on_event=on_event,
        )
        check_transport(own_async_engine(bind).sync_engine, transport, grpc, shards)
        self._bind = bind
        self._transport_name = transport
        self._grpc = grpc
        self._changes = Changes()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._engine: AsyncEngine | None = None
        self._settler: AsyncSettler[M] | None = None
        self._transport: Transport[M] | None = None
        self._wake: _Wake | None = None

    @property
    def is_open(self) -> bool:  # type: ignore[override]
        """Whether it was opened, and not closed since."""
        return self._task is not None

    async def open(self) -> None:
        """Connect and begin to receive.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        if self._task is not None:
            return
        engine = own_async_engine(self._bind)
        wake = _Wake()
        try:
            transport = await call(self._connect, engine.sync_engine, wake)
        except BaseException:
            await engine.dispose()
            raise
        self._engine = engine
        self._stopping = asyncio.Event()
        self._error = None
        self._changes = Changes()
        self._settler = AsyncSettler(self.model, engine.sync_engine)
        self._transport, self._wake = transport, wake
        self._task = asyncio.create_task(
            self._run(transport, engine, wake), name=f"AsyncSubscriber({self._queue})"
        )

    def _connect(self, engine: Engine, wake: _Wake) -> Transport[M]:
        return make_transport(
            self.model,
            engine,
            self._transport_name,
            poll_interval=self._poll_interval,
            shards=self._shards,
            grpc=self._grpc,
            deliver=partial(self._deliver, wake),
            report=self._report,
            wake=wake,
        )

    def stop_receiving(self) -> None:
        """Give back what nobody has got, and receive nothing more; messages already got may be
        settled as before. :meth:`close` follows.
        """
        self._stopping.set()
        if self._transport is not None and self._wake is not None:
            self._transport.interrupt()
            self._wake.set()
        self._changes.tell()

    async def close(self) -> None:
        """Stop receiving, commit grouped settlements, give back what nobody has got, disconnect.

        Messages already got stay leased and may still be settled in a transaction of the caller's.
        """
        task, settler, engine = self._task, self._settler, self._engine
        if task is None or settler is None or engine is None or self._transport is None:
            return
        self._task = self._settler = self._engine = None
        self.stop_receiving()
        # Nothing of this may be left out when the caller is cancelled.
        await asyncio.shield(self._close(task, settler, self._transport, engine))

    async def _close(
        self,
        task: asyncio.Task[None],
        settler: AsyncSettler[M],
        transport: Transport[M],
        engine: AsyncEngine,
    ) -> None:
        _done, pending = await asyncio.wait(
            [task, asyncio.ensure_future(settler.close())], timeout=CLOSE_WITHIN
        )
        for late in pending:
            late.cancel()
        if pending:
            log.warning(
                "the server doesn't answer; messages of this subscriber come back after ack_wait",
                extra={"queue": self._queue},
            )
            await asyncio.wait(pending, timeout=0.1)
        await call(transport.close)
        await engine.dispose()
        self._holdings.free_places()
        self._report()

    async def __aenter__(self) -> AsyncSubscriber[M]:
        await self.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[M]:
        """Yield messages until the subscriber is closed."""
        while self._task is not None and not self._stopping.is_set():
            for message in await self._get_many(1, None):
                yield message

    async def get(self, timeout: float | None = None) -> M | None:
        """Return the next message, now leased to the caller.

        :param timeout: seconds to wait; None waits until one comes or the subscriber closes.
        :return: None when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        messages = await self.get_many(1, timeout)
        return messages[0] if messages else None

    async def get_many(self, n: int, timeout: float | None = None) -> list[M]:
        """Return up to ``n`` messages: those that are there, as soon as there is one.

        :param n: how many at most.
        :param timeout: seconds to wait for the first; None waits until one comes or the
            subscriber closes.
        :return: an empty list when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        check_n(n)
        messages = await self._get_many(n, timeout)
        if not messages and (self._task is None or self._stopping.is_set()):
            raise self._closed()
        return messages

    async def _get_many(self, n: int, timeout: float | None) -> list[M]:
        end = None if timeout is None else time.monotonic() + timeout
        while self._task is not None and not self._stopping.is_set():
            if self._error is not None:
                raise self._error
            taken = self._holdings.take(n)
            for message in taken:
                lease = lease_of(message)
                assert lease is not None
                lease.on_settling(self._on_settling)
            self._report()
            if self._is_needed:
                self._changes.tell()
            if taken:
                return taken
            remaining = None if end is None else end - time.monotonic()
            if remaining is not None and remaining <= 0:
                return []
            await self._changes.wait(remaining)
        return []

    def ack(self, message: M) -> asyncio.Future[None]:
        """Ack soon, in a commit shared with others, for work that has no transaction.

        :return: resolved when the commit is done. Its exception is :class:`.AlreadySettled`, or
            the database's error: then the message may come back.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return self._open_settler().ack(message)

    def fail(self, message: M, reason: str | None = None) -> asyncio.Future[None]:
        """Fail soon, in a commit shared with others; see :meth:`ack`.

        :return: its exception may be :class:`.LeaseLost`.
        """
        return self._open_settler().fail(message, reason)

    def retry(self, message: M, delay: float | timedelta | None = None) -> asyncio.Future[None]:
        """Retry soon, in a commit shared with others; see :meth:`ack`.

        :return: its exception may be :class:`.LeaseLost`.
        """
        return self._open_settler().retry(message, delay)

    async def extend(self, messages: Sequence[M], seconds: float | timedelta) -> list[M]:
        """Let the leases of messages end this long from now, in a transaction of its own.

        :param messages: received by this subscriber.
        :param seconds: more than 0 seconds, or a timedelta.
        :return: those whose lease is over, and which others may have.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        if self._engine is None:
            raise self._closed()
        engine = self._engine.sync_engine
        return await call(leases.extend_free, self.model, engine, messages, seconds)

    async def flush(self, timeout: float | None = None) -> bool:
        """Wait until all settlements handed to this subscriber are committed or have failed.

        :param timeout: seconds to wait at most.
        :return: False when the time was over first.
        """
        return await self._open_settler().flush(timeout)

    def _open_settler(self) -> AsyncSettler[M]:
        if self._settler is None:
            raise self._closed()
        return self._settler

    def _on_settling(self, leases: Sequence[Lease]) -> None:
        if self._task is not None:
            # The commit may be one of another thread's.
            self._task.get_loop().call_soon_threadsafe(self._note_settling, leases)

    def _note_settling(self, leases: Sequence[Lease]) -> None:
        self._holdings.note_settling(leases)
        if self._holdings.may_want_more:
            self._changes.tell()

    def _deliver(self, wake: _Wake, messages: list[M]) -> None:
        """Take in what was leased."""
        is_urgent = self._accept(messages)
        self._changes.tell()
        if is_urgent:
            wake.set()

    def _report(self, *more: Event) -> None:
        self._tell([*self._holdings.drain_events(), *more])

    async def _run(self, transport: Transport[M], engine: AsyncEngine, wake: _Wake) -> None:
        """Receive until closed, reconnecting as often as it takes."""
        from tenacity import AsyncRetrying, retry_if_exception_type
        from tenacity.wait import wait_random_exponential

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(lost_connection_errors(engine.sync_engine)),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_BACKOFF),
            sleep=self._sleep,
            stop=lambda _state: self._stopping.is_set(),
            before_sleep=self._log_lost_connection,
            reraise=True,
        )
        try:
            while not self._stopping.is_set():
                await retrying(self._receive, transport, engine.sync_engine, wake)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self._stopping.is_set():
                log.exception("the subscriber has stopped", extra={"queue": self._queue})
                self._error = error
        finally:
            await self._give_back_all(transport)
            self._changes.tell()
            self._report()

    async def _sleep(self, seconds: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _receive(self, transport: Transport[M], engine: Engine, wake: _Wake) -> None:
        await self._wait_until_needed()
        await self._put_right(transport, engine)
        if await wake.wait(transport.pause):
            transport.pause = 0.0
        self._holdings.free_places()
        if self._holdings.wants_more and not self._stopping.is_set():
            await call(transport.look, self._holdings.room)
        if self._disconnected:
            self._disconnected = False
            self._report(Reconnected(self._queue))

    async def _wait_until_needed(self) -> None:
        """Wait until it pays to receive, or something is to be put right, or it is to stop."""
        while not self._stopping.is_set():
            self._holdings.free_places()
            self._report()
            if self._is_needed:
                return
            await self._changes.wait(self._holdings.until_change(1))

    async def _put_right(self, transport: Transport[M], engine: Engine) -> None:
        """Let die what has run out of attempts; give back what is stale, or too much."""
        worn, self._worn = self._worn, []
        if worn:
            self._report(*await call(self._let_die, worn, engine))
        if stale := self._holdings.stale:
            await call(transport.give_back, stale)
            self._holdings.drop_stale(stale)
        if self._holdings.room < 0:
            await call(transport.stop)
            surplus = self._holdings.drop_surplus()
            self._changes.tell()  # Places may have become free for what is left.
            if surplus:
                await call(transport.give_back, surplus)

    async def _give_back_all(self, transport: Transport[M]) -> None:
        unseen: list[M] = []
        try:
            await call(transport.stop)
            if unseen := self._holdings.drop_unseen():
                await call(transport.give_back, unseen)
        except Exception as error:  # noqa: BLE001  # Closing must go on.
            self._note_not_given_back(len(unseen), error)

    def _log_lost_connection(self, state: object) -> None:
        outcome = getattr(state, "outcome", None)
        reason = self._note_lost_connection(outcome.exception() if outcome else None)
        self._report(Reconnecting(self._queue, reason))


class _Wake:
    """Ends a pause when it pays to look, which any thread may notice."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake, from any thread."""
        with suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> bool:
        """Pause, unless there is something since the last pause.

        :return: whether there is.
        """
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        woken = self._event.is_set()
        self._event.clear()
        return woken
