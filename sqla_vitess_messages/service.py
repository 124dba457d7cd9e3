"""What runs until it is told to stop, in threads or in an event loop: a worker, a scheduler."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Self

from .forking import forget_in_child
from .runtime import Condition, Runtime, ThreadRuntime

__all__ = ["BaseService", "ThreadService"]

STOP_POLL_INTERVAL = 0.1
"""Seconds until a signal is noticed at the latest."""


class BaseService:
    """Starts, runs and stops.

    :meth:`_run`, :meth:`_start`, :meth:`_stop` and :meth:`_shut_down` are synchronous; for asyncio
    they are called in greenlets.
    """

    def __init__(self) -> None:
        self._runtime: Runtime
        self._restore_signals: Callable[[], None] | None = None
        self._reset()
        forget_in_child(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._stop_requested = False
        self._signals = 0
        self._error: BaseException | None = None
        self._changed: Condition | None = None

    def forget_parent(self) -> None:
        """Be stopped in a process that was forked, and leave its signals to others."""
        self._reset()
        if self._restore_signals is not None:
            self._restore_signals()

    def _make_runtime(self) -> Runtime:
        """Return the runtime of a service that is being started."""
        raise NotImplementedError

    def _catch_signals(self) -> Callable[[], None]:
        """Have :meth:`_note_signal` called for SIGTERM and SIGINT.

        :return: a function that ends this.
        """
        raise NotImplementedError

    def _run_in_process(self, on_start: Callable[[], object]) -> bool:
        """Entry point for the CLI: run, then return False if a second signal arrived."""
        raise NotImplementedError

    def _start(self) -> None:
        """Begin."""
        raise NotImplementedError

    def _stop(self) -> bool:
        """End, and return whether everything was finished in time."""
        raise NotImplementedError

    def _shut_down(self) -> None:
        """End at once, and release what is held. Does nothing where nothing runs."""
        raise NotImplementedError

    @property
    def _must_stop(self) -> bool:
        """Whether :meth:`_run` is to end."""
        return self._stop_requested or self._signals > 0 or self._error is not None

    def request_stop(self) -> None:
        """Make :meth:`run` finish what has begun, and return. Called from any thread."""
        with self._lock:
            self._stop_requested = True
            self._notify()

    def _end_with(self, error: BaseException) -> None:
        """Have :meth:`run` raise an error that has ended a part of the service."""
        with self._lock:
            self._error = error
            self._notify()

    def _notify(self) -> None:
        with self._lock:
            if self._changed is not None:
                self._changed.notify_all()

    def _note_signal(self, *_signal: object) -> None:
        self._signals += 1  # Without a lock, which the interrupted code might hold.

    def _run(self, on_start: Callable[[], object] = lambda: None) -> bool:
        self._signals = 0
        self._restore_signals = self._catch_signals()
        try:
            self._start()
            on_start()
            self._wait_until(lambda: self._must_stop, math.inf)
            return self._stop()
        finally:
            try:
                self._runtime.shield(self._shut_down)
            finally:
                restore, self._restore_signals = self._restore_signals, None
                restore()

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition on this object's state, or until the time is over."""
        assert self._changed is not None
        end = time.monotonic() + seconds
        with self._lock:
            while not condition() and (remaining := end - time.monotonic()) > 0:
                self._changed.wait(min(remaining, STOP_POLL_INTERVAL))

    def _sleep_unless_stopping(self, seconds: float) -> None:
        self._wait_until(lambda: self._must_stop, seconds)


class ThreadService(BaseService):
    """A service that runs in threads."""

    def start(self) -> None:
        """Begin."""
        raise NotImplementedError

    def stop(self) -> bool:
        """End, and return whether everything was finished in time."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            self.stop()
        except BaseException:
            if kind is None:  # Otherwise the block's own error is raised.
                raise

    def _make_runtime(self) -> Runtime:
        return ThreadRuntime()

    def _catch_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        before = {
            number: signal.signal(number, self._note_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    def _run_in_process(self, on_start: Callable[[], object]) -> bool:
        self._run(on_start)
        return self._signals < 2
