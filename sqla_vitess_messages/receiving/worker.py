"""Run a handler for each message of a queue, in threads.

.. code-block:: python

    def send(message, session):
        session.add(Sent(address=message.address))

    Worker(Subscriber(Mail, url), send, sessionmaker(engine)).run()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, Generic, overload

from sqlalchemy.orm import Session

from .. import clock
from ..arguments import check_count, check_function, check_result
from ..errors import InvalidArgument, InvalidArgumentType, MessageQueueError, SubscriberClosed
from ..logs import get_logger
from ..periodic.periodic import Periodic
from ..periodic.ticker import Ticker
from ..rows.lease import leases_of
from ..rows.message import queue_table
from ..rows.reasons import describe_error
from ..runtime import Task
from ..service import BaseService, ThreadService
from ..sessions import begin_session
from ..shown import shown
from ..table.options import queue_options
from .handling import MessageProcessor, check_sessions
from .renewal import Heartbeat, LeaseRenewals
from .repetition import Repetition
from .retries import RetryPolicy
from .subscriber import BaseSubscriber, M, Subscriber

__all__ = ["BaseWorker", "BatchHandler", "Handler", "Worker"]

log = get_logger(__name__)

Handler = Callable[[M, Session], object]
"""Takes a message, and the session of the transaction."""

BatchHandler = Callable[[list[M], Session], object]
"""Takes a list of messages, and the session of the transaction."""


class BaseWorker(BaseService, Generic[M]):
    """What the workers for threads and for asyncio have in common."""

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
        periodic: Iterable[Periodic],
    ) -> None:
        check_function("handler", handler, is_async=self._is_async)
        check_function("session_factory", session_factory)
        if not (retry is None or isinstance(retry, RetryPolicy)):
            raise InvalidArgumentType(f"retry={shown(retry)}: expected a RetryPolicy")
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
        self._ticker = Ticker(periodic, self._begin)
        super().__init__()

    def _reset(self) -> None:
        super()._reset()
        self._renewals = LeaseRenewals()
        self._tasks: list[Task] = []
        self._running = 0
        self._run_id: object = None
        self._heartbeat: Heartbeat | None = None

    def _begin_handling(
        self,
    ) -> AbstractContextManager[tuple[Session, Callable[[Any], object]]]:
        """See :data:`.handling.BeginHandling`."""
        raise NotImplementedError

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        """Begin a transaction that handles no message."""
        with self._begin_handling() as (session, _run_handler):
            yield session

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._queue!r}, {self.concurrency} at a time>"

    @property
    def _must_stop(self) -> bool:
        has_ended = self._running < len(self._tasks)
        return super()._must_stop or has_ended

    def _start(self) -> None:
        if any(task.is_alive for task in self._tasks):
            return
        self._runtime = runtime = self._make_runtime()
        self._shut_down()  # If its event loop has ended, or the subscriber has failed.
        if self._subscriber.is_open and self._subscriber._has_worker:
            raise InvalidArgument(
                f"subscriber={shown(self._subscriber)}: another worker has it, and would close it; "
                "give each worker a subscriber of its own"
            )
        check_sessions(self._subscriber.model, self._begin_handling)
        self._changed = runtime.condition(self._lock)
        self._error = None
        self._ticker.prepare()
        self._subscriber._open(self._retry, self.concurrency * (self._batch_size or 1))
        self._subscriber._has_worker = True
        self._heartbeat = Heartbeat(
            self._renewals, self._subscriber._open_loop().extend, self._ack_wait, runtime
        )
        processor = MessageProcessor(
            self._subscriber.model,
            self._begin_handling,
            self._subscriber._open_loop(),
            retry=self._retry,
            batch_size=self._batch_size,
            renewals=self._renewals,
            repeat=Repetition(self._ack_wait, self._sleep_unless_stopping, lambda: self._must_stop),
            runtime=runtime,
        )
        self._running = self.concurrency
        self._run_id = run_id = object()
        self._tasks = [
            runtime.start(partial(self._work, processor, run_id), f"Worker-{number}")
            for number in range(self.concurrency)
        ]
        self._ticker.start(runtime, self._end_with)
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
        self._ticker.request_stop()
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
        self._ticker.stop()
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
        self._subscriber._has_worker = False
        self._stop_requested = False

    def _work(self, processor: MessageProcessor[M], run_id: object) -> None:
        """Handle messages until the worker stops: in a thread, or a task.

        :param run_id: of the start that this belongs to. A handler may outlive its end.
        """
        try:
            while self._run_id is run_id and not self._stop_requested:
                self._work_once(processor, self._subscriber._get_many(self._batch_size or 1, None))
        except BaseException as error:
            if self._run_id is run_id:
                self._note_end(error)
            if self._runtime.is_cancellation(error):
                raise
        finally:
            with self._lock:
                if self._run_id is run_id:
                    self._running -= 1
                self._notify()

    def _note_end(self, error: BaseException) -> None:
        """Have :meth:`run` raise what has ended the first thread or task, unless it was to end."""
        is_cancellation = self._runtime.is_cancellation(error)
        if self._stop_requested and (is_cancellation or isinstance(error, SubscriberClosed)):
            return
        if isinstance(error, SubscriberClosed) and self._subscriber.is_closed:
            return  # By a handler, say: that ends the worker, too.
        if is_cancellation:
            error = MessageQueueError(f"other code has cancelled a task of {self!r}")
        if self._error is None:
            log.error("the worker ends: %s", describe_error(error), extra={"queue": self._queue})
            self._error = error

    def _work_once(self, processor: MessageProcessor[M], messages: Sequence[M]) -> None:
        leases = leases_of(self._subscriber.model, messages)
        with self._renewals.watch(leases):
            try:
                processor.process(messages, leases)
            except BaseException as error:
                if self._runtime.is_cancellation(error):
                    self._runtime.shield(partial(processor.release, leases))
                raise


class Worker(ThreadService, BaseWorker[M]):
    """Receives messages, and runs a handler for each in a transaction that acks it.

    Everything that the handler writes to its session commits together with the ack. If it raises,
    all of that is rolled back, and the message is retried or is dead, as the retry policy says.
    While the handler runs, the message's lease is extended; if that fails because the lease is
    lost, the transaction isn't committed. The handler must not commit by itself.

    :param subscriber: opened and closed by the worker. Unless it has a ``max_concurrency``, it
        holds twice as many messages as the handlers have at a time: as many again wait for them.
    :param handler: called as ``handler(message, session)``, in one of the worker's threads; in
        batch mode as ``handler(messages, session)``.
    :param session_factory: makes a session, such as a ``sessionmaker``.
    :param concurrency: how many handlers run at a time.
    :param retry: whether and when a message whose handler failed is retried. Default:
        ``RetryPolicy()``, with 10 deliveries at most.
    :param batch_size: gives the handler up to so many messages at a time, for one transaction. When
        it fails, each message is handled alone, so that one can't hold up the others.
    :param shutdown_timeout: seconds, or a timedelta, to let running handlers finish at the end.
        The messages of handlers that don't are delivered again when their leases are over.
    :param periodic: :class:`Periodic` objects that the worker schedules beside its work, as a
        :class:`Scheduler` does.
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
        periodic: Iterable[Periodic] = ...,
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
        periodic: Iterable[Periodic] = ...,
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
        periodic: Iterable[Periodic] = (),
    ) -> None:
        if not isinstance(subscriber, Subscriber):
            raise InvalidArgumentType(f"subscriber={shown(subscriber)}: expected a Subscriber")
        super().__init__(
            subscriber,
            handler,
            session_factory,
            concurrency=concurrency,
            retry=retry,
            batch_size=batch_size,
            shutdown_timeout=shutdown_timeout,
            periodic=periodic,
        )

    @contextmanager
    def _begin_handling(self) -> Iterator[tuple[Session, Callable[[Any], object]]]:
        with begin_session(self._session_factory) as session:
            yield session, lambda argument: check_result(self._handler(argument, session))

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
