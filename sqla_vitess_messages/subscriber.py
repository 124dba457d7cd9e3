"""Receive messages as ORM instances, each leased to this process.

.. code-block:: python

    with Subscriber(WelcomeEmail, url, max_concurrency=100) as subscriber:
        for message in subscriber:
            with Session(engine) as session, session.begin():
                ...                       # the effect
                message.ack(session)      # commits with it, or not at all
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .ddl import queue_table
from .errors import InvalidArgument, InvalidArgumentType, SubscriberClosed
from .leases import Lease, lease_of
from .mixin import MessageQueueMixin
from .transports import Transport, TransportName, make_transport
from .transports.factory import Bind, check_transport_name, own_engine

__all__ = ["Subscriber"]

M = TypeVar("M", bound=MessageQueueMixin)

log = logging.getLogger(__name__)

CLOSE_WITHIN = 1.8
"""Seconds that :meth:`Subscriber.close` waits for the transport to end."""

LONGEST_BACKOFF = 2.0
"""Seconds between two attempts to reconnect, at most."""


class Subscriber(Generic[M]):
    """Receives the messages of one queue. Safe to share between threads.

    :param model: the queue's class.
    :param bind: a database URL, or an Engine whose settings to copy. Either way the subscriber has
        connections of its own, and none before :meth:`open`.
    :param max_concurrency: how many received messages may be unsettled at a time, those waiting
        in the subscriber included.
    :param transport: ``"auto"``, ``"pull"`` or ``"stream"`` (Vitess only).
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        model: type[M],
        bind: Bind,
        *,
        max_concurrency: int = 100,
        transport: TransportName = "auto",
    ) -> None:
        if not (isinstance(model, type) and issubclass(model, MessageQueueMixin)):
            raise InvalidArgumentType(f"model={model!r}: expected a class with MessageQueueMixin")
        if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int):
            raise InvalidArgumentType(f"max_concurrency={max_concurrency!r}: expected an int")
        if not 1 <= max_concurrency <= 10_000:
            raise InvalidArgument(f"max_concurrency={max_concurrency}: expected from 1 to 10000")
        check_transport_name(transport)
        self._model = model
        self._queue = queue_table(model).name
        self._bind = bind
        self._max = max_concurrency
        self._transport_name: TransportName = transport
        self._transport: Transport[M] | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._buffer: deque[M] = deque()
        self._held: set[Lease] = set()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        own_engine(bind).dispose()

    def __repr__(self) -> str:
        state = "open" if self._thread is not None else "closed"
        return f"<Subscriber of {self._queue!r}, {state}>"

    def open(self) -> None:
        """Connect and begin to receive.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        if self._thread is not None:
            return
        engine = own_engine(self._bind)
        try:
            self._transport = make_transport(self._model, engine, self._transport_name)
        except BaseException:
            engine.dispose()
            raise
        self._closing.clear()
        self._error = None
        self._thread = threading.Thread(
            target=self._run,
            args=(self._transport,),
            name=f"Subscriber({self._queue})",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop receiving, give back what nobody has got, close the connections.

        Returns within two seconds. Messages already got stay leased and may still be settled.
        """
        thread, transport = self._thread, self._transport
        if thread is None or transport is None:
            return
        self._closing.set()
        transport.interrupt()
        with self._changed:
            self._changed.notify_all()
        thread.join(CLOSE_WITHIN)
        if thread.is_alive():
            log.warning(
                "the server doesn't answer; messages of this subscriber come back after ack_wait",
                extra={"queue": self._queue},
            )
        self._thread = self._transport = None

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
        """Yield messages until the subscriber is closed."""
        while True:
            try:
                message = self.get()
            except SubscriberClosed:
                return
            if message is not None:
                yield message

    def get(self, timeout: float | None = None) -> M | None:
        """Return the next message, now leased to the caller.

        :param timeout: seconds to wait; None waits until one comes or the subscriber closes.
        :return: None when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        messages = self.get_many(1, timeout)
        return messages[0] if messages else None

    def get_many(self, n: int, timeout: float | None = None) -> list[M]:
        """Return up to ``n`` messages: those that are there, as soon as there is one.

        :param n: how many at most.
        :param timeout: seconds to wait for the first; None waits until one comes or the
            subscriber closes.
        :return: an empty list when the time is over.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InvalidArgument(f"n={n!r}: expected an int of at least 1")
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._thread is None or self._closing.is_set():
                    raise SubscriberClosed(f"the subscriber of {self._queue!r} is not open")
                if messages := self._take(n):
                    return messages
                remaining = None if end is None else end - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return []
                self._changed.wait(self._until_next_expiry(remaining))

    def _take(self, n: int) -> list[M]:
        """Hand out what is buffered and whose lease still runs, within max_concurrency."""
        self._forget_expired()
        taken: list[M] = []
        while self._buffer and len(taken) < n and len(self._held) < self._max:
            message = self._buffer.popleft()
            lease = lease_of(message)
            assert lease is not None
            lease.on_settled(self._on_settled)
            self._held.add(lease)
            taken.append(message)
        if taken:
            self._changed.notify_all()
        return taken

    def _forget_expired(self) -> None:
        """Drop leases that ran out: the database hands those messages to somebody else."""
        expired = [lease for lease in self._held if lease.expired]
        self._held.difference_update(expired)
        fresh = [m for m in self._buffer if (lease := lease_of(m)) and not lease.expired]
        if expired or len(fresh) < len(self._buffer):
            self._buffer = deque(fresh)
            self._changed.notify_all()

    def _until_next_expiry(self, remaining: float | None) -> float | None:
        """Return how long to wait at most, when places may be freed by leases that run out."""
        if len(self._held) < self._max:
            return remaining
        soonest = min(lease.deadline for lease in self._held) - time.monotonic()
        return max(soonest if remaining is None else min(soonest, remaining), 0.001)

    def _on_settled(self, lease: Lease) -> None:
        with self._changed:
            self._held.discard(lease)
            self._changed.notify_all()

    def _run(self, transport: Transport[M]) -> None:
        """Receive until closed, reconnecting as often as it takes."""
        from tenacity import (
            Retrying,
            retry_if_exception_type,
            sleep_using_event,
            stop_when_event_set,
        )  # fmt: skip
        from tenacity.wait import wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception_type((DBAPIError, OSError)),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_BACKOFF),
            sleep=sleep_using_event(self._closing),
            stop=stop_when_event_set(self._closing),
            before_sleep=self._log_lost_connection,
            reraise=True,
        )
        try:
            while not self._closing.is_set():
                retrying(self._receive, transport)
        except BaseException as error:
            if not self._closing.is_set():
                log.exception("the subscriber has stopped", extra={"queue": self._queue})
                self._error = error
        finally:
            self._give_back_all(transport)
            transport.close()
            with self._changed:
                self._changed.notify_all()

    def _receive(self, transport: Transport[M]) -> None:
        room = self._wait_for_room()
        if not room:
            return
        for message in transport.receive(room):
            with self._changed:
                self._buffer.append(message)
                self._changed.notify()
        with self._changed:
            self._forget_expired()
            kept = max(self._max - len(self._held), 0)
            surplus = [self._buffer.pop() for _ in range(len(self._buffer) - kept)]
        if surplus:
            transport.give_back([*surplus, *transport.stop()])

    def _wait_for_room(self) -> int:
        """Wait until it pays to receive: the buffer is empty, or half of all places are free.

        :return: how many messages there is room for; 0 when closing.
        """
        with self._changed:
            while not self._closing.is_set():
                self._forget_expired()
                room = self._max - len(self._held) - len(self._buffer)
                if room > 0 and (not self._buffer or room >= self._max / 2):
                    return room
                self._changed.wait(1)
            return 0

    def _give_back_all(self, transport: Transport[M]) -> None:
        with self._changed:
            unseen = list(self._buffer)
            self._buffer.clear()
        try:
            unseen += transport.stop()
            if unseen:
                transport.give_back(unseen)
        except (SQLAlchemyError, OSError) as error:
            log.warning(
                "%d messages could not be given back and come back after ack_wait: %s",
                len(unseen), type(error).__name__,
                extra={"queue": self._queue},
            )  # fmt: skip

    def _log_lost_connection(self, state: object) -> None:
        outcome = getattr(state, "outcome", None)
        error = None if outcome is None else outcome.exception()
        reason = getattr(error, "orig", error)
        log.warning("connection lost, reconnecting: %s", reason, extra={"queue": self._queue})
