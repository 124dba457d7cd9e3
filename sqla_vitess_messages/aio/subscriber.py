"""Receive messages in coroutines.

.. code-block:: python

    async with AsyncSubscriber(Mail, "sqlite+aiosqlite:///app.db") as subscriber:
        async for message in subscriber:
            async with AsyncSession(engine) as session, session.begin():
                ...                                   # the work that the message triggers
                await session.run_sync(message.ack)   # commits with it, or not at all
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from ..arguments import check_count
from ..errors import SubscriberClosed
from ..events import Event
from ..receiving.subscriber import BaseSubscriber, M
from ..runtime import Runtime
from ..transports.choice import TransportChoice
from .engine import AsyncBind, dedicated_async_engine
from .runtime import AsyncioRuntime

__all__ = ["AsyncSubscriber"]


class AsyncSubscriber(BaseSubscriber[M, "asyncio.Future[None]"]):
    """Receives the messages of one queue, in the event loop that opens it.

    :param model: the queue's class.
    :param bind: a database URL with an asyncio driver, or an AsyncEngine whose settings to copy.
        Either way the subscriber has connections of its own, and none before :meth:`open`.
    :param transport: how messages come from the database: ``"pull"`` or ``"grpc"`` (Vitess only),
        or one of :class:`.Pull` and :class:`.Grpc` with settings. ``"auto"`` is ``"grpc"`` where
        ``bind`` is a ``vitess+grpc://`` URL, else ``"pull"``. ``"stream"`` needs the driver
        PyMySQL, and so a :class:`.Subscriber`.
    :param max_concurrency: how many received messages may be unsettled at a time, those waiting
        in the subscriber included. A message counts until its settlement's transaction has
        committed, or until its lease has ended in the database. Default: 100; in a worker, twice
        as many as its handlers have at a time.
    :param max_attempts: how often a message is handed out at most. One that isn't settled by then
        becomes dead. Default: no limit.
    :param on_event: called with each :class:`.events.Event`. It must return soon: receiving waits
        for it.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        model: type[M],
        bind: AsyncBind,
        *,
        transport: TransportChoice = "auto",
        max_concurrency: int | None = None,
        max_attempts: int | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        super().__init__(
            model,
            bind,
            transport=transport,
            max_concurrency=max_concurrency,
            max_attempts=max_attempts,
            on_event=on_event,
        )

    def _make_engine(self) -> Engine:
        return dedicated_async_engine(self._bind).sync_engine

    def _make_runtime(self) -> Runtime:
        return AsyncioRuntime()

    def _make_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Connect and begin to receive.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        await greenlet_spawn(self._open)

    async def close(self) -> None:
        """Stop receiving, commit grouped settlements, release messages nobody has got, disconnect.

        Returns within two seconds. Messages already got stay leased and may still be settled in
        a transaction of the caller's.
        """
        # All of this has to be done, also when the caller is cancelled.
        await asyncio.shield(greenlet_spawn(self._close))

    async def __aenter__(self) -> AsyncSubscriber[M]:
        await self.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[M]:
        """Yield messages until the subscriber is closed.

        :raises SubscriberClosed: when it isn't open at the beginning.
        """
        self._open_loop()
        with suppress(SubscriberClosed):
            while True:
                for message in await self.get_many(1):
                    yield message

    async def get(self, timeout: float | timedelta | None = None) -> M | None:
        """Return the next message, now leased to the caller.

        :param timeout: seconds, or a timedelta, to wait; None waits until one comes or the
            subscriber closes.
        :return: None when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        messages = await self.get_many(1, timeout)
        return messages[0] if messages else None

    async def get_many(self, limit: int, timeout: float | timedelta | None = None) -> list[M]:
        """Return messages as soon as there is one: those that wait, up to a limit.

        :param limit: how many at most.
        :param timeout: seconds, or a timedelta, to wait for the first; None waits until one comes
            or the subscriber closes.
        :return: an empty list when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        check_count("limit", limit)
        # Without a wait there is no need for a greenlet.
        if messages := self._get_many(limit, 0):
            return messages
        return await greenlet_spawn(self._get_many, limit, timeout)

    async def extend(self, messages: Sequence[M], seconds: float | timedelta) -> list[M]:
        """Extend the leases of messages in a transaction of its own: they end this long from now.

        Rows that a transaction has locked are left as they are: it is settling them.

        :param messages: received by this subscriber.
        :param seconds: more than 0 seconds, or a timedelta.
        :return: those whose lease is over, and which others may have.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return await greenlet_spawn(self._extend, messages, seconds)

    async def flush(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until all settlements handed to this subscriber are committed or have failed.

        :param timeout: seconds, or a timedelta, to wait at most.
        :return: False when the time was over first.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return await greenlet_spawn(self._flush, timeout)
