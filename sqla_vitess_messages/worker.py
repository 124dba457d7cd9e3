"""Run a handler for each message of a queue, in threads.

.. code-block:: python

    def send(message, session):
        session.add(Sent(address=message.address))

    Worker(Subscriber(Mail, url), send, sessionmaker(engine)).run()
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

from sqlalchemy.orm import Session

from .base_subscriber import M
from .base_worker import BaseWorker
from .deadlocks import despite_deadlocks
from .errors import (
    AlreadySettled,
    InvalidArgumentType,
    LeaseLost,
    SubscriberClosed,
)
from .heartbeat import Heartbeat
from .retries import RetryPolicy, Verdict
from .subscriber import Subscriber

__all__ = ["Worker"]

log = logging.getLogger(__name__)

Handler = Callable[[Any, Session], object]
"""Takes a message, or in batch mode a list of them, and the session of the transaction."""

LOOK_FOR_STOP_EACH = 0.1
"""Seconds until :meth:`Worker.run` notices that it is to stop."""


class Worker(BaseWorker[M]):
    """Receives messages, and runs a handler for each in a transaction that acks it.

    What the handler writes to its session commits together with the ack. If it raises, all of that
    is rolled back, and the message is tried again or is dead, as the retry policy says. While it
    runs, the message's lease is extended; if that fails because the lease is lost, the transaction
    isn't committed. The handler must not commit by itself.

    :param subscriber: opened and closed by the worker.
    :param handler: called as ``handler(message, session)``, in one of the worker's threads; in
        batch mode as ``handler(messages, session)``.
    :param session_factory: makes a session, such as a ``sessionmaker``.
    :param concurrency: how many handlers run at a time.
    :param retry: what becomes of a message whose handler failed.
    :param batch_size: gives the handler up to so many messages at a time, for one transaction. When
        it fails, each message is handled alone, so that one can't hold up the others.
    :param shutdown_timeout: seconds, or a timedelta, to let running handlers finish at the end.
        The messages of those that don't come back when their lease is over.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        subscriber: Subscriber[M],
        handler: Handler,
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
        self._subscriber = subscriber
        self._heartbeat: Heartbeat[M] | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> bool:
        """Work until SIGTERM, SIGINT or :meth:`request_stop`; then finish what runs.

        A second signal ends it at once. Signals are only seen in the main thread.

        :return: whether all handlers finished in time.
        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        self._signals = 0
        with self._catch_signals():
            self.start()
            while not self._stopping.is_set() and not self._signals and self._running():
                time.sleep(LOOK_FOR_STOP_EACH)
            finished = self.stop()
        if self._error is not None:
            raise self._error
        return finished

    def run_until_signal(self) -> bool:
        """Do as :meth:`run`, for a process that does nothing else.

        :return: False after a second signal.
        """
        self.run()
        return self._signals < 2

    def start(self) -> None:
        """Begin to work, in threads of the worker's own.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        if self._threads:
            return
        self._subscriber.open()
        self._error = None
        self._heartbeat = Heartbeat(self._subscriber, self._ack_wait)
        self._heartbeat.start()
        self._threads = [
            threading.Thread(target=self._work, name=f"Worker-{number}", daemon=True)
            for number in range(self.concurrency)
        ]
        for thread in self._threads:
            thread.start()
        log.info("working", extra={"queue": self._queue})

    def request_stop(self) -> None:
        """Let :meth:`run` come to its end, from any thread."""
        self._stopping.set()

    def stop(self) -> bool:
        """Take no more messages, give back those not begun, and wait for running handlers.

        :return: whether all of them finished in time.
        """
        self._stopping.set()
        self._subscriber.stop_receiving()
        deadline = time.monotonic() + self._patience
        while (running := self._running()) and time.monotonic() < deadline and self._signals < 2:
            time.sleep(0.02)
        if running:
            self._note_unfinished(running)
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._subscriber.close()
        self._threads = []
        self._stopping.clear()
        return not running

    def __enter__(self) -> Worker[M]:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _running(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

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

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1  # A lock might be held by the code that the signal interrupted.

    def _work(self) -> None:
        assert self._heartbeat is not None
        while not self._stopping.is_set():
            try:
                messages = self._subscriber.get_many(self._batch_size or 1)
            except SubscriberClosed:
                return
            except BaseException as error:  # noqa: BLE001  # Raised again by run().
                self._error = error
                return
            with self._heartbeat.watch(messages):
                self._process(messages)

    def _process(self, messages: Sequence[M]) -> None:
        fresh: list[M] = []
        for message in messages:
            if verdict := self._judge_unhandled(message):
                self._settle(message, verdict)
            else:
                fresh.append(message)
        if len(fresh) > 1:
            try:
                self._handle(fresh)
            except BaseException as error:  # noqa: BLE001  # Each alone will show which it was.
                self._note_batch_error(error)
            else:
                return
        for message in fresh:
            self._handle_one(message)

    def _handle_one(self, message: M) -> None:
        try:
            self._handle([message])
        except (AlreadySettled, LeaseLost) as error:
            self._note_lost(message, error)
        except BaseException as error:  # noqa: BLE001  # A thread must survive its handlers.
            self._settle(message, self._judge(message, error))

    def _handle(self, messages: Sequence[M]) -> None:
        """Run the handler and ack, in one transaction: again, if it met a deadlock."""
        despite_deadlocks(partial(self._handle_once, messages))

    def _handle_once(self, messages: Sequence[M]) -> None:
        assert self._heartbeat is not None
        try:
            with self._session_factory() as session, session.begin():
                self._handler(self._argument(messages), session)
                self._heartbeat.pause(messages)
                self._model.ack_all(session, messages)
        except BaseException:
            self._heartbeat.resume(messages)
            raise

    def _settle(self, message: M, verdict: Verdict) -> None:
        assert self._heartbeat is not None
        try:
            self._heartbeat.pause([message])
            with self._session_factory() as session, session.begin():
                if verdict.delay is None:
                    message.fail(session, verdict.reason)
                else:
                    message.retry(session, verdict.delay)
        except LeaseLost as error:
            self._note_lost(message, error)
        except Exception as error:  # noqa: BLE001  # Its lease will end.
            self._note_unsettled(message, error)
