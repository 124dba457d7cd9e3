"""Receive messages as ORM instances, each leased to this process.

.. code-block:: python

    with Subscriber(WelcomeEmail, url, max_concurrency=100) as subscriber:
        for message in subscriber:
            with Session(engine) as session, session.begin():
                ...                       # the work that the message triggers
                message.ack(session)      # commits with it, or not at all
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine

from .. import clock
from ..arguments import check_count, check_function, check_model
from ..errors import SubscriberClosed
from ..events import Event
from ..forking import forget_in_child
from ..logs import get_logger
from ..mixin import MessageQueueMixin
from ..rows import settle
from ..rows.epochs import MAX_ATTEMPTS
from ..rows.lease import leases_of
from ..rows.message import queue_table
from ..runtime import Runtime, ThreadRuntime
from ..table.order import is_ordered
from ..transports.choice import TransportChoice
from ..transports.engines import Bind, dedicated_engine
from ..transports.factory import check_transport
from .batcher import LONGEST_WAIT, Change, PendingSettlement
from .emitting import EventEmitter
from .in_flight import InFlight
from .loop import ReceiveLoop
from .rejection import queue_policy, reject
from .retries import RetryPolicy

__all__ = ["BaseSubscriber", "M", "Subscriber"]

M = TypeVar("M", bound=MessageQueueMixin)
FutureT = TypeVar("FutureT")

log = get_logger(__name__)

DEFAULT_CONCURRENCY = 100
"""``max_concurrency`` of a subscriber without a worker."""

MOST_CONCURRENCY = 10_000


class BaseSubscriber(Generic[M, FutureT]):
    """What the subscribers for threads and for asyncio have in common.

    :meth:`_open`, :meth:`_close` and :meth:`_get_many` are synchronous; for asyncio they are called
    in greenlets.
    """

    def __init__(
        self,
        model: type[M],
        bind: Any,
        *,
        transport: TransportChoice,
        max_concurrency: int | None,
        max_attempts: int | None,
        on_event: Callable[[Event], object] | None,
    ) -> None:
        check_model(model)
        if max_concurrency is not None:
            check_count("max_concurrency", max_concurrency, MOST_CONCURRENCY)
        if max_attempts is not None:
            check_count("max_attempts", max_attempts, MAX_ATTEMPTS)
        if on_event is not None:
            check_function("on_event", on_event)
        self.model = model
        self._bind = bind
        self._choice = check_transport(self._make_engine(), transport, queue_table(model))
        self._queue = queue_table(model).name
        self._max_concurrency = max_concurrency
        self._max_attempts = max_attempts
        self._on_event = on_event
        self._loop: ReceiveLoop[M] | None = None
        self._is_open_in_parent = False
        self._has_worker = False
        self._reset()
        forget_in_child(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._in_flight: InFlight[M] = InFlight(
            self._queue,
            self._max_concurrency or DEFAULT_CONCURRENCY,
            emit_events=self._on_event is not None,
            keep_settled=is_ordered(queue_table(self.model)),
        )

    def forget_parent(self) -> None:
        """Be closed in a process that was forked: the parent has the messages and connections."""
        self._reset()
        if self._loop is not None:
            self._loop = None
            self._is_open_in_parent = True
            self._has_worker = False

    def _check_process(self) -> None:
        """Check that it isn't in the process before a fork that the subscriber was opened.

        :raises SubscriberClosed: otherwise.
        """
        if self._is_open_in_parent:
            raise SubscriberClosed(
                f"the subscriber of {self._queue!r} was opened before this process was forked, and "
                "receives in the parent; call open() in this process to receive here as well"
            )

    def _make_engine(self) -> Engine:
        """Return an engine of the subscriber's own, not connected yet."""
        raise NotImplementedError

    def _make_runtime(self) -> Runtime:
        """Return the runtime of a subscriber that is being opened."""
        raise NotImplementedError

    def _make_future(self) -> FutureT:
        """Return a future for a grouped settlement."""
        raise NotImplementedError

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        loop: ReceiveLoop[M] | None = getattr(self, "_loop", None)
        if loop is not None:
            loop.abandon()
            _warn(f"{self!r} was not closed", ResourceWarning, source=self)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<{type(self).__name__} of {self._queue!r}, {state}>"

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and has neither been closed nor ended since."""
        return self._loop is not None and not self._loop.has_ended

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or never opened. One that has failed is neither."""
        return self._loop is None

    def stop_receiving(self) -> None:
        """Receive nothing more, and release the messages that nobody has got.

        Messages already got may be settled as before. :meth:`close` follows.
        """
        if self._loop is not None:
            self._loop.stop_receiving()

    def ack(self, message: M) -> FutureT:
        """Ack soon, in a commit shared with others, for work that has no transaction.

        :return: a future, resolved when the commit is done. Its exception is
            :class:`.AlreadySettled`, or the database's error: then the message may come back.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return self._settle(message, Change("ack"))

    def fail(self, message: M, reason: str | None = None) -> FutureT:
        """Fail soon, in a commit shared with others; see :meth:`ack`.

        :return: a future; its exception may be :class:`.LeaseLost`.
        :raises InvalidArgumentType: when the reason is no str.
        """
        settle.check_reason(reason)
        return self._settle(message, Change("fail", reason=reason))

    def retry(
        self, message: M, delay: float | timedelta | None = None, reason: str | None = None
    ) -> FutureT:
        """Retry soon, in a commit shared with others; see :meth:`ack`.

        :return: a future; its exception may be :class:`.LeaseLost`.
        :raises InvalidArgument: when the delay has a value that can't work.
        :raises InvalidArgumentType: when the delay is neither a number nor a timedelta, or the
            reason no str.
        """
        settle.check_reason(reason)
        if delay is not None:
            clock.to_seconds(delay, "delay")
        return self._settle(message, Change("retry", reason, delay))

    def _settle(self, message: M, change: Change) -> FutureT:
        batcher = self._open_loop().batcher
        [lease] = leases_of(self.model, [message])
        future: Any = self._make_future()
        batcher.add(PendingSettlement(lease, change, future, time.monotonic() + LONGEST_WAIT))
        lease.promise(future.done)
        settled: FutureT = future
        return settled

    def _open_loop(self) -> ReceiveLoop[M]:
        if self._loop is None:
            self._check_process()
            raise SubscriberClosed(f"the subscriber of {self._queue!r} is not open")
        return self._loop

    def _open(self, retry: RetryPolicy | None = None, handled: int | None = None) -> None:
        """Connect and begin to receive.

        :param retry: for messages that can't be loaded. Default: the queue's own backoff.
        :param handled: how many messages a worker's handlers have at a time.
        """
        if self._loop is not None and not self._loop.has_ended:
            return
        self._in_flight.limit = self._concurrency_for(handled)
        loop = ReceiveLoop(
            self.model,
            self._make_engine(),
            self._in_flight,
            self._lock,
            self._make_runtime(),
            reject=partial(
                reject,
                policy=retry or queue_policy(queue_table(self.model), self._max_attempts),
                max_attempts=self._max_attempts,
            ),
            emitter=EventEmitter(self, self._queue),
        )
        loop.open(self._choice)
        self._loop = loop
        self._is_open_in_parent = False

    def _concurrency_for(self, handled: int | None) -> int:
        """Return how many messages may be unsettled; see :meth:`_open`."""
        if self._max_concurrency is None:
            # As many wait as are handled: no handler idles, and the others' handlers have the rest.
            return DEFAULT_CONCURRENCY if handled is None else min(2 * handled, MOST_CONCURRENCY)
        if handled is not None and self._max_concurrency < handled:
            log.warning(
                "max_concurrency=%d, while the worker's handlers can have %d messages at a time: "
                "some will be idle", self._max_concurrency, handled,
                extra={"queue": self._queue},
            )  # fmt: skip
        return self._max_concurrency

    def _close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def _get_many(self, limit: int, timeout: float | timedelta | None) -> list[M]:
        return self._open_loop().get_many(limit, _seconds(timeout))

    def _flush(self, timeout: float | timedelta | None) -> bool:
        return self._open_loop().batcher.flush(_seconds(timeout))

    def _extend(self, messages: Sequence[M], seconds: float | timedelta) -> list[M]:
        loop = self._open_loop()
        length = clock.to_seconds(seconds, "seconds", minimum=0.001)
        leases = [leases_of(self.model, [message])[0] for message in messages]
        lost = loop.extend(list(dict.fromkeys(leases)), length)
        return [message for message, lease in zip(messages, leases, strict=True) if lease in lost]


class Subscriber(BaseSubscriber[M, Future[None]]):
    """Receives the messages of one queue. Safe to share between threads.

    :param model: the queue's class.
    :param bind: a database URL, or an Engine whose settings to copy. Either way the subscriber has
        connections of its own, and none before :meth:`open`.
    :param transport: how messages come from the database: ``"pull"``, ``"stream"`` or ``"grpc"``
        (both for Vitess only), or one of :class:`.Pull`, :class:`.Stream` and :class:`.Grpc` with
        settings. ``"auto"`` is ``"grpc"`` where ``bind`` is a ``vitess+grpc://`` URL, else
        ``"pull"``.
    :param max_concurrency: how many received messages may be unsettled at a time, those waiting
        in the subscriber included. A message counts until its settlement's transaction has
        committed, or until its lease has ended in the database. Default: 100; in a worker, twice
        as many as its handlers have at a time.
    :param max_attempts: how often a message is handed out at most. One that isn't settled by then
        becomes dead. Default: no limit.
    :param on_event: called with each :class:`.events.Event`, in the thread where it is noticed. It
        must return soon: receiving waits for it.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        model: type[M],
        bind: Bind,
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
        return dedicated_engine(self._bind)

    def _make_runtime(self) -> Runtime:
        return ThreadRuntime()

    def _make_future(self) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # It can't be cancelled.
        return future

    def open(self) -> None:
        """Connect and begin to receive.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        self._open()

    def close(self) -> None:
        """Stop receiving, commit grouped settlements, release messages nobody has got, disconnect.

        Returns within two seconds. Messages already got stay leased and may still be settled in
        a transaction of the caller's.
        """
        self._close()

    def __enter__(self) -> Subscriber[M]:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[M]:
        """Yield messages until the subscriber is closed.

        :raises SubscriberClosed: when it isn't open at the beginning.
        """
        self._open_loop()
        with suppress(SubscriberClosed):
            while True:
                yield from self._get_many(1, None)

    def get(self, timeout: float | timedelta | None = None) -> M | None:
        """Return the next message, now leased to the caller.

        :param timeout: seconds, or a timedelta, to wait; None waits until one comes or the
            subscriber closes.
        :return: None when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        messages = self._get_many(1, timeout)
        return messages[0] if messages else None

    def get_many(self, limit: int, timeout: float | timedelta | None = None) -> list[M]:
        """Return messages as soon as there is one: those that wait, up to a limit.

        :param limit: how many at most.
        :param timeout: seconds, or a timedelta, to wait for the first; None waits until one comes
            or the subscriber closes.
        :return: an empty list when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        check_count("limit", limit)
        return self._get_many(limit, timeout)

    def extend(self, messages: Sequence[M], seconds: float | timedelta) -> list[M]:
        """Extend the leases of messages in a transaction of its own: they end this long from now.

        Rows that a transaction has locked are left as they are: it is settling them.

        :param messages: received by this subscriber.
        :param seconds: more than 0 seconds, or a timedelta.
        :return: those whose lease is over, and which others may have.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return self._extend(messages, seconds)

    def flush(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until all settlements handed to this subscriber are committed or have failed.

        :param timeout: seconds, or a timedelta, to wait at most.
        :return: False when the time was over first.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return self._flush(timeout)


def _seconds(timeout: float | timedelta | None) -> float | None:
    """Return a timeout in seconds. One below 0 is over already.

    :raises InvalidArgumentType: when it is neither a number, nor a timedelta, nor None.
    """
    return None if timeout is None else clock.to_seconds(timeout, "timeout", minimum=-math.inf)
