"""Run the receiving engine in an event loop: its synchronous code runs in greenlets.

SQLAlchemy's own asyncio support works in the same way: a wait inside of synchronous code switches
from its greenlet to the task that runs it, which awaits.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from ..runtime import Condition, Task
from ..transports.engines import READ_TIMEOUT

__all__ = ["AsyncCondition", "AsyncioRuntime"]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncioRuntime:
    """Runs everything in the event loop that is running now."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._process = os.getpid()

    def condition(self, lock: threading.RLock) -> Condition:
        return AsyncCondition(self._loop, lock)

    def start(self, function: Callable[[], object], name: str) -> Task:
        return _LoopTask(self._loop, self._loop.create_task(greenlet_spawn(function), name=name))

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await_only(_call_bounded(partial(function, *args, **kwargs)))

    def call_from_any_thread(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        if not self._loop.is_running() or os.getpid() != self._process:
            return None
        if threading.get_ident() == self._thread:
            # A synchronous session inside the event loop can't wait for anything in it.
            return function(*args, **kwargs) if in_greenlet() else None
        calling = _call_bounded(partial(function, *args, **kwargs))
        return asyncio.run_coroutine_threadsafe(calling, self._loop).result()

    def call_apart(self, function: Callable[[], None]) -> None:
        error = await_only(self._loop.create_task(_error_of(function)))
        if error is not None:
            raise error

    def shield(self, function: Callable[[], T]) -> T:
        return await_only(asyncio.shield(greenlet_spawn(function)))

    def sleep(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))

    def is_cancellation(self, error: BaseException) -> bool:
        if not isinstance(error, asyncio.CancelledError):
            return False
        # The error may also come from something else that was cancelled, and awaited here.
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


async def _error_of(function: Callable[[], None]) -> BaseException | None:
    """Call a function in a greenlet, and return its error: a task's SystemExit ends its loop."""
    try:
        await greenlet_spawn(function)
    except BaseException as error:  # noqa: BLE001  # The caller raises it.
        return error
    return None


async def _call_bounded(function: Callable[[], T]) -> T:
    """Call a function that uses the database in a greenlet.

    :raises OSError: when the server is silent for too long.
    """
    try:
        async with asyncio.timeout(READ_TIMEOUT) as limit:
            return await greenlet_spawn(function)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise OSError(f"the server has been silent for {READ_TIMEOUT} s") from error


class _LoopTask:
    """A task. When its event loop is closed, it has ended, wherever it was."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
        self._loop = loop
        self._task = task

    @property
    def is_alive(self) -> bool:
        return not (self._task.done() or self._loop.is_closed())

    def join(self, timeout: float | None = None) -> bool:
        if self.is_alive:
            await_only(asyncio.wait([self._task], timeout=timeout))
        return not self.is_alive

    def cancel(self) -> bool:
        return self.is_alive and self._task.cancel()


class AsyncCondition:
    """A condition of an event loop. Any thread may notify it.

    :param lock: is never held while a greenlet waits, so a lock for threads will do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lock: threading.RLock) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._lock = lock
        self._waiters: deque[asyncio.Future[None]] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._lock.release()
        try:
            await_only(asyncio.wait([waiter], timeout=timeout))
        except BaseException:
            with self._lock:
                if waiter.done():
                    self.notify()  # It was notified in place of another one, which goes on now.
            raise
        finally:
            self._lock.acquire()
            if not waiter.done():
                with suppress(ValueError):  # Another thread is about to notify it.
                    self._waiters.remove(waiter)
        return waiter.done()

    def notify(self, n: int = 1) -> None:
        waiters = [self._waiters.popleft() for _ in range(min(n, len(self._waiters)))]
        if not waiters:
            return
        with suppress(RuntimeError):  # The event loop is closed.
            if threading.get_ident() == self._thread:
                _wake(waiters)
            else:
                self._loop.call_soon_threadsafe(_wake, waiters)

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


def _wake(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
