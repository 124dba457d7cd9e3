"""An adapter by which the synchronous suite tests the asyncio subscriber."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

from sqla_vitess_messages import SubscriberClosed
from sqla_vitess_messages.aio import AsyncSubscriber


class AsyncSubscriberAdapter:
    """Has the interface of Subscriber, and forwards every call to an event loop in a thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._subscriber: AsyncSubscriber[Any] = AsyncSubscriber(*arguments, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return repr(self._subscriber)

    def open(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
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
        return asyncio.run_coroutine_threadsafe(settle(), self._loop)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            coroutine.close()
            raise SubscriberClosed("not open")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None
