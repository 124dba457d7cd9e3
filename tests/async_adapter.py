"""Adapters by which the synchronous suite tests the asyncio subscriber and worker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_vitess_messages import SubscriberClosed
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.submit(coroutine).result()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class AsyncSubscriberAdapter:
    """Has the interface of Subscriber, and forwards every call to an event loop in a thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._subscriber: AsyncSubscriber[Any] = AsyncSubscriber(*arguments, **options)
        self._loop: LoopThread | None = None

    def __repr__(self) -> str:
        return repr(self._subscriber)

    def open(self) -> None:
        if self._loop is not None:
            return
        self._loop = LoopThread()
        try:
            self._call(self._subscriber.open())
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        if self._loop is not None:
            try:
                self._call(self._subscriber.close())
            finally:
                self._end_loop()

    def __enter__(self) -> AsyncSubscriberAdapter:
        self.open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                message = self.get()
            except SubscriberClosed:
                return
            yield message

    def get(self, timeout: float | None = None) -> Any:
        return self._call(self._subscriber.get(timeout))

    def get_many(self, limit: int, timeout: float | None = None) -> list[Any]:
        return self._call(self._subscriber.get_many(limit, timeout))

    def ack(self, *arguments: Any) -> Future[None]:
        return self._settle("ack", *arguments)

    def fail(self, *arguments: Any) -> Future[None]:
        return self._settle("fail", *arguments)

    def retry(self, *arguments: Any) -> Future[None]:
        return self._settle("retry", *arguments)

    def flush(self, timeout: float | None = None) -> bool:
        return self._call(self._subscriber.flush(timeout))

    def extend(self, messages: list[Any], seconds: float) -> list[Any]:
        return self._call(self._subscriber.extend(messages, seconds))

    def _settle(self, action: str, *arguments: Any) -> Future[None]:
        async def settle() -> None:
            await getattr(self._subscriber, action)(*arguments)

        if self._loop is None:
            raise SubscriberClosed("not open")
        return self._loop.submit(settle())

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            coroutine.close()
            raise SubscriberClosed("not open")
        return self._loop.call(coroutine)

    def _end_loop(self) -> None:
        assert self._loop is not None
        self._loop.end()
        self._loop = None


def sleep(seconds: float) -> None:
    """Wait in a handler, without blocking the event loop where there is one."""
    if in_greenlet():
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


class AsyncWorkerAdapter:
    """Runs an AsyncWorker in an event loop in a thread, whose handler is an ordinary function.

    :param handler: called as ``handler(message, session)``, with the synchronous session.
    """

    def __init__(
        self,
        subscriber: AsyncSubscriber[Any],
        url: URL,
        handler: Callable[..., Any],
        **options: Any,
    ) -> None:
        self._loop = LoopThread()
        self._engine = create_async_engine(url)

        async def handle(message: Any, session: AsyncSession) -> Any:
            return await session.run_sync(lambda sync: handler(message, sync))

        self._worker: AsyncWorker[Any] = AsyncWorker(
            subscriber, handle, async_sessionmaker(self._engine), **options
        )

    @property
    def engine(self) -> Engine:
        """The engine of the handler's sessions."""
        return self._engine.sync_engine

    @property
    def running(self) -> int:
        """How many tasks work."""
        return self._worker._running

    def start(self) -> None:
        self._loop.call(self._worker.start())

    def stop(self) -> bool:
        try:
            done: bool = self._loop.call(self._worker.stop())
            self._loop.call(self._engine.dispose())
        finally:
            self._loop.end()
        return done
