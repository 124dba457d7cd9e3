"""What differs between threads and asyncio, for code that is written once for both.

The receiving engine is synchronous code. With a :class:`ThreadRuntime` it runs in threads. With the
runtime in :mod:`sqla_vitess_messages.aio.runtime` it runs in greenlets of an event loop, in the way
in which SQLAlchemy's own asyncio support runs its synchronous engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

__all__ = ["Condition", "Runtime", "Task", "ThreadRuntime"]

P = ParamSpec("P")
T = TypeVar("T")


class Condition(Protocol):
    """Waits for a change of state that a lock guards. Hold the lock when calling its methods."""

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock until the condition is notified.

        :param timeout: seconds to wait at most; None for as long as it takes.
        :return: whether it was notified in time. The state may have changed again since.
        """
        ...

    def notify(self, n: int = 1) -> None:
        """Wake at least ``n`` of those that wait, from any thread."""
        ...

    def notify_all(self) -> None:
        """Wake everybody that waits, from any thread."""
        ...


class Task(Protocol):
    """A function that runs beside its caller."""

    @property
    def is_alive(self) -> bool:
        """Whether the function has not returned yet."""
        ...

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the function returns.

        :param timeout: seconds to wait at most; None for as long as it takes.
        :return: whether it has returned.
        """
        ...

    def cancel(self) -> bool:
        """Make the function raise an error at the point where it waits.

        :return: False in threads, where that isn't possible.
        """
        ...


class Runtime(Protocol):
    """Runs the receiving engine's code, in threads or in an event loop."""

    def condition(self, lock: threading.RLock) -> Condition:
        """Return a condition for state that ``lock`` guards."""
        ...

    def start(self, function: Callable[[], object], name: str) -> Task:
        """Run a function beside the caller."""
        ...

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses the database, for a bounded time.

        :raises OSError: when the server is silent for too long.
        """
        ...

    def call_from_any_thread(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Call a function that uses the receiving engine's connections, from wherever it is needed.

        :return: None where the caller blocks the event loop that the function needs, or where that
            runs in the process that has forked this one.
        """
        ...

    def call_apart(self, function: Callable[[], None]) -> None:
        """Call user code in a task of its own, so that it can cancel that one and no other.

        It is cancelled with the task of the caller.
        """
        ...

    def shield(self, function: Callable[[], T]) -> T:
        """Call a function that is to reach its end, though the caller is cancelled."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def is_cancellation(self, error: BaseException, /) -> bool:
        """Return whether an error means that the running task is to end."""
        ...


class ThreadRuntime:
    """Runs everything in threads."""

    def condition(self, lock: threading.RLock) -> Condition:
        return threading.Condition(lock)

    def start(self, function: Callable[[], object], name: str) -> Task:
        return _ThreadTask(function, name)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # The driver's read timeout bounds it.
        return function(*args, **kwargs)

    def call_from_any_thread(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        return function(*args, **kwargs)

    def call_apart(self, function: Callable[[], None]) -> None:
        function()

    def shield(self, function: Callable[[], T]) -> T:
        return function()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def is_cancellation(self, error: BaseException) -> bool:
        # Ctrl-C: Python raises it in the main thread alone. In another one, user code did.
        is_main = threading.current_thread() is threading.main_thread()
        return is_main and isinstance(error, KeyboardInterrupt)


class _ThreadTask:
    def __init__(self, function: Callable[[], object], name: str) -> None:
        self._thread = threading.Thread(target=function, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout: float | None = None) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel(self) -> bool:
        return False
