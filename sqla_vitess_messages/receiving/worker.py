"""Run a handler for each message of a queue, in threads.

.. code-block:: python

    def send(message, session):
        session.add(Sent(address=message.address))

    Worker(Subscriber(Mail, url), send, sessionmaker(engine)).run()
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, Generic, overload

from sqlalchemy.orm import Session

from .. import clock
from ..errors import InvalidArgumentType, SubscriberClosed
from ..rows.lease import leases_of
from ..rows.message import queue_table
from ..runtime import Condition, Runtime, Task, ThreadRuntime
from ..table.options import queue_options
from .arguments import check_count, check_function, check_result
from .handling import MessageProcessor, check_sessions
from .renewal import Heartbeat, LeaseRenewals
from .repetition import Repetition
from .retries import RetryPolicy
from .subscriber import BaseSubscriber, M, Subscriber

__all__ = ["BaseWorker", "BatchHandler", "Handler", "Worker"]

log = logging.getLogger(__name__)

Handler = Callable[[M, Session], object]
"""Takes a message, and the session of the transaction."""

BatchHandler = Callable[[list[M], Session], object]
"""Takes a list of messages, and the session of the transaction."""

STOP_POLL_INTERVAL = 0.1
"""Seconds until a signal is noticed at the latest."""


class BaseWorker(Generic[M]):
    """What the workers for threads and for asyncio have in common.

    :meth:`_run`, :meth:`_start`, :meth:`_stop` and :meth:`_shut_down` are synchronous; for asyncio
    they are called in greenlets.
    """

    _is_async: ClassVar[bool]
    """Whether the handler is a coroutine function."""

    def __init__(
        self,
        subscriber: BaseSubscriber[M, Any],
        handler: Callable[..., Any],
        session_factory: Callable[[], Any],
        *,
        concurrency: int,
        retry: RetryPolicy | None,
        batch_size: int | None,
        shutdown_timeout: float | timedelta,
    ) -> None:
        check_function("handler", handler, is_async=self._is_async)
        check_function("session_factory", session_factory)
        if not (retry is None or isinstance(retry, RetryPolicy)):
            raise InvalidArgumentType(f"retry={retry!r}: expected a RetryPolicy")
        check_count("concurrency", concurrency, 1000)
        if batch_size is not None:
            check_count("batch_size", batch_size, 500)
        self.concurrency = concurrency
        self._subscriber: BaseSubscriber[M, Any] = subscriber
        self._handler = handler
        self._session_factory = session_factory
        self._retry = retry or RetryPolicy()
        self._batch_size = batch_size
        self._shutdown_timeout = clock.to_seconds(shutdown_timeout, "shutdown_timeout")
        table = queue_table(subscriber.model)
        self._queue = table.name
        self._ack_wait = queue_options(table).ack_wait
        self._renewals = LeaseRenewals()
        self._lock = threading.RLock()
        self._stop_requested = False
        self._signals = 0
        self._tasks: list[Task] = []
        self._running = 0
        self._run_id: object = None
        self._error: BaseException | None = None
        self._heartbeat: Heartbeat | None = None
        self._changed: Condition | None = None
        self._runtime: Runtime

    def _make_runtime(self) -> Runtime:
        """Return the runtime of a worker that is being started."""
        raise NotImplementedError

    def _begin_handling(
        self,
    ) -> AbstractContextManager[tuple[Session, Callable[[Any], object]]]:
        """See :data:`.handling.BeginHandling`."""
        raise NotImplementedError

    def _catch_signals(self) -> AbstractContextManager[None]:
        """Have :meth:`_note_signal` called for SIGTERM and SIGINT."""
        raise NotImplementedError

    def _run_in_process(self) -> bool:
        """Entry point for the CLI: run, then return False if a second signal arrived."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._queue!r}, {self.concurrency} at a time>"

    def request_stop(self) -> None:
        """Make :meth:`run` finish the running handlers and return. Called from any thread."""
        with self._lock:
            self._stop_requested = True
            if self._changed is not None:
                self._changed.notify_all()

    def _note_signal(self, *_signal: object) -> None:
        self._signals += 1  # Without a lock, which the interrupted code might hold.

    def _run(self) -> bool:
        self._signals = 0
        with self._catch_signals():
            try:
                self._start()
                self._wait_until(lambda: self._must_stop, math.inf)
                return self._stop()
            finally:
                self._runtime.shield(self._shut_down)

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition on this object's state, or until the time is over."""
        assert self._changed is not None
        end = time.monotonic() + seconds
        with self._lock:
            while not condition() and (remaining := end - time.monotonic()) > 0:
                self._changed.wait(min(remaining, STOP_POLL_INTERVAL))

    def _sleep_unless_stopping(self, seconds: float) -> None:
        self._wait_until(lambda: self._must_stop, seconds)

    @property
    def _must_stop(self) -> bool:
        has_ended = self._running < len(self._tasks)
        return self._stop_requested or self._signals > 0 or has_ended

    def _start(self) -> None:
        if any(task.is_alive for task in self._tasks):
            return
        self._shut_down()  # If its event loop has ended, or the subscriber has failed.
        check_sessions(self._subscriber.model, self._begin_handling)
        self._runtime = runtime = self._make_runtime()
        self._subscriber._open(self._retry)
        self._changed = runtime.condition(self._lock)
        self._error = None
        self._heartbeat = Heartbeat(
            self._renewals, self._subscriber._open_loop().extend, self._ack_wait, runtime
        )
        processor = MessageProcessor(
            self._subscriber.model,
            self._begin_handling,
            self._subscriber._open_loop().release,
            retry=self._retry,
            batch_size=self._batch_size,
            renewals=self._renewals,
            repeat=Repetition(self._ack_wait, self._sleep_unless_stopping, lambda: self._must_stop),
            is_cancellation=runtime.is_cancellation,
        )
        self._running = self.concurrency
        self._run_id = run_id = object()
        self._tasks = [
            runtime.start(partial(self._work, processor, run_id), f"Worker-{number}")
            for number in range(self.concurrency)
        ]
        log.info("working", extra={"queue": self._queue})

    def _stop(self) -> bool:
        """Receive nothing more, wait for running handlers, and close.

        :return: whether all handlers finished in time.
        :raises BaseException: the error that ended the subscriber, if one has.
        """
        if not self._tasks:
            return True
        self._stop_requested = True
        self._subscriber.stop_receiving()
        try:
            self._wait_until(
                lambda: not self._running or self._signals >= 2, self._shutdown_timeout
            )
            unfinished = self._running
        finally:
            self._runtime.shield(self._shut_down)
        if unfinished:
            log.warning(
                "%d handlers did not finish; their messages come back", unfinished,
                extra={"queue": self._queue},
            )  # fmt: skip
        if self._error is not None:
            raise self._error
        return not unfinished

    def _shut_down(self) -> None:
        """Cancel running handlers, where that is possible, and close."""
        tasks, self._tasks = self._tasks, []
        self._run_id = None
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is None:
            return
        heartbeat.stop()
        self._subscriber.stop_receiving()
        for task in [task for task in tasks if task.cancel()]:
            task.join()
        self._subscriber._close()
        self._stop_requested = False

    def _work(self, processor: MessageProcessor[M], run_id: object) -> None:
        """Handle messages until the worker stops: in a thread, or a task.

        :param run_id: of the start that this belongs to. A handler may outlive its end.
        """
        try:
            while self._run_id is run_id and not self._stop_requested:
                self._work_once(processor, self._subscriber._get_many(self._batch_size or 1, None))
        except SubscriberClosed:
            pass
        except BaseException as error:
            if self._runtime.is_cancellation(error):
                raise
            if self._run_id is run_id:
                self._error = error
        finally:
            with self._lock:
                if self._run_id is run_id:
                    self._running -= 1
                if self._changed is not None:
                    self._changed.notify_all()

    def _work_once(self, processor: MessageProcessor[M], messages: Sequence[M]) -> None:
        leases = leases_of(self._subscriber.model, messages)
        with self._renewals.watch(leases):
            try:
                processor.process(messages, leases)
            except BaseException as error:
                if self._runtime.is_cancellation(error):
                    self._runtime.shield(partial(processor.release, leases))
                raise


class Worker(BaseWorker[M]):
    """Receives messages, and runs a handler for each in a transaction that acks it.

    Everything that the handler writes to its session commits together with the ack. If it raises,
    all of that is rolled back, and the message is retried or is dead, as the retry policy says.
    While the handler runs, the message's lease is extended; if that fails because the lease is
    lost, the transaction isn't committed. The handler must not commit by itself.

    :param subscriber: opened and closed by the worker.
    :param handler: called as ``handler(message, session)``, in one of the worker's threads; in
        batch mode as ``handler(messages, session)``.
    :param session_factory: makes a session, such as a ``sessionmaker``.
    :param concurrency: how many handlers run at a time.
    :param retry: whether and when a message whose handler failed is retried.
    :param batch_size: gives the handler up to so many messages at a time, for one transaction. When
        it fails, each message is handled alone, so that one can't hold up the others.
    :param shutdown_timeout: seconds, or a timedelta, to let running handlers finish at the end.
        The messages of those that don't come back when their lease is over.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    _is_async = False

    @overload
    def __init__(
        self,
        subscriber: Subscriber[M],
        handler: Handler[M],
        session_factory: Callable[[], Session],
        *,
        concurrency: int = ...,
        retry: RetryPolicy | None = ...,
        batch_size: None = ...,
        shutdown_timeout: float | timedelta = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        subscriber: Subscriber[M],
        handler: BatchHandler[M],
        session_factory: Callable[[], Session],
        *,
        concurrency: int = ...,
        retry: RetryPolicy | None = ...,
        batch_size: int,
        shutdown_timeout: float | timedelta = ...,
    ) -> None: ...

    def __init__(
        self,
        subscriber: Subscriber[M],
        handler: Handler[M] | BatchHandler[M],
        session_factory: Callable[[], Session],
        *,
        concurrency: int = 8,
        retry: RetryPolicy | None = None,
        batch_size: int | None = None,
        shutdown_timeout: float | timedelta = 30.0,
    ) -> None:
        if not isinstance(subscriber, Subscriber):
            raise InvalidArgumentType(f"subscriber={subscriber!r}: expected a Subscriber")
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
        return ThreadRuntime()

    @contextmanager
    def _begin_handling(self) -> Iterator[tuple[Session, Callable[[Any], object]]]:
        with self._session_factory() as session, session.begin():
            yield session, lambda argument: check_result(self._handler(argument, session))

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._note_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run_in_process(self) -> bool:
        self.run()
        return self._signals < 2

    def run(self) -> bool:
        """Work until SIGTERM, SIGINT or :meth:`request_stop`; then finish the running handlers.

        A second signal ends it at once. Signals are only noticed in the main thread.

        :return: whether all handlers finished in time.
        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        return self._run()

    def start(self) -> None:
        """Begin to work, in threads of the worker's own.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        self._start()

    def stop(self) -> bool:
        """Receive no more messages, release those not begun, and wait for running handlers.

        :return: whether all of them finished in time.
        :raises BaseException: the error that ended the subscriber, if one has.
        """
        return self._stop()

    def __enter__(self) -> Worker[M]:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            self.stop()
        except BaseException:
            if kind is None:  # Otherwise the block's own error is raised.
                raise
