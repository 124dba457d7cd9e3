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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from types import TracebackType

from sqlalchemy import URL, Engine

from . import leases
from .base_subscriber import LONGEST_BACKOFF, BaseSubscriber, M, check_n, lost_connection_errors
from .errors import SubscriberClosed
from .events import Event, Reconnected, Reconnecting
from .leases import Lease, lease_of
from .settler import Settler
from .transports import Transport, TransportName, make_transport
from .transports.factory import Bind, check_transport, own_engine

__all__ = ["Subscriber"]

log = logging.getLogger(__name__)

CLOSE_WITHIN = 1.8
"""Seconds that :meth:`Subscriber.close` waits for the transport to end."""


class Subscriber(BaseSubscriber[M]):
    """Receives the messages of one queue. Safe to share between threads.

    :param model: the queue's class.
    :param bind: a database URL, or an Engine whose settings to copy. Either way the subscriber has
        connections of its own, and none before :meth:`open`.
    :param max_concurrency: how many received messages may be unsettled at a time, those waiting
        in the subscriber included. A place is free again when the settlement's transaction has
        committed, or when the lease has run out in the database.
    :param transport: ``"pull"``, ``"stream"`` or ``"grpc"`` (both Vitess only), or ``"auto"``:
        ``"grpc"`` where vtgate's gRPC address is given, by ``bind`` or ``grpc``, else ``"pull"``.
    :param grpc: where to stream from, beside a bind that speaks the MySQL protocol: vtgate's
        ``host:port`` for gRPC, or a URL such as ``vitess+grpc://user@host:15991/keyspace``. What
        it leaves out is as in ``bind``.
    :param poll_interval: seconds, or a timedelta, between two looks at an idle queue, at most.
        Right after work a pull looks every few milliseconds. Doesn't concern streams.
    :param max_attempts: how often a message may have been handed out; one that comes once more is
        dead. Default: no limit.
    :param shards: in a sharded keyspace, the shards to receive from: names or key ranges such as
        ``["-80"]``. Default: all, which is what a stream always has.
    :param on_event: called with each :class:`.events.Event`, in the thread where it is noticed, and
        soon done: it holds up receiving.
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
        grpc: str | URL | None = None,
        poll_interval: float | timedelta = 0.1,
        max_attempts: int | None = None,
        shards: Sequence[str] | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        super().__init__(
            model,
            max_concurrency=max_concurrency,
            poll_interval=poll_interval,
            max_attempts=max_attempts,
            shards=shards,
            on_event=on_event,
        )
        self._bind = bind
        self._grpc = grpc
        self._transport_name: TransportName = transport
        self._transport: Transport[M] | None = None
        self._settler: Settler[M] | None = None
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        lock = threading.RLock()
        self._changed = threading.Condition(lock)  # Receivers wait for messages.
        self._needed = threading.Condition(lock)  # The subscriber's thread waits for work.
        self._stopping = threading.Event()
        self._closing = threading.Event()
        self._wake = threading.Event()
        engine = own_engine(bind)
        check_transport(engine, transport, grpc, shards)
        engine.dispose()

    @property
    def is_open(self) -> bool:  # type: ignore[override]
        """Whether it was opened, and not closed since."""
        return self._thread is not None

    def open(self) -> None:
        """Connect and begin to receive.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        if self._thread is not None:
            return
        engine = own_engine(self._bind)
        try:
            self._transport = make_transport(
                self.model,
                engine,
                self._transport_name,
                poll_interval=self._poll_interval,
                shards=self._shards,
                grpc=self._grpc,
                deliver=self._deliver,
                report=self._report,
                wake=self._wake,
            )
        except BaseException:
            engine.dispose()
            raise
        self._stopping.clear()
        self._closing.clear()
        self._error = None
        self._engine = engine
        self._settler = Settler(self.model, engine)
        self._thread = threading.Thread(
            target=self._run,
            args=(self._transport, self._settler, engine),
            name=f"Subscriber({self._queue})",
            daemon=True,
        )
        self._thread.start()

    def stop_receiving(self) -> None:
        """Give back what nobody has got, and receive nothing more; messages already got may be
        settled as before. :meth:`close` follows.
        """
        self._stopping.set()
        if self._transport is not None:
            self._transport.interrupt()
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
            self._needed.notify()

    def close(self) -> None:
        """Stop receiving, commit grouped settlements, give back what nobody has got, disconnect.

        Returns within two seconds. Messages already got stay leased and may still be settled in
        a transaction of the caller's.
        """
        thread = self._thread
        if thread is None:
            return
        self._closing.set()
        self.stop_receiving()
        thread.join(CLOSE_WITHIN)
        if thread.is_alive():
            log.warning(
                "the server doesn't answer; messages of this subscriber come back after ack_wait",
                extra={"queue": self._queue},
            )
        self._thread = self._transport = self._settler = self._engine = None

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
        check_n(n)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            with self._changed:
                while True:
                    if self._error is not None:
                        raise self._error
                    if self._thread is None or self._stopping.is_set():
                        raise self._closed()
                    if messages := self._take(n):
                        return messages
                    remaining = None if end is None else end - time.monotonic()
                    if remaining is not None and remaining <= 0:
                        return []
                    self._changed.wait(remaining)
        finally:
            self._report()

    def ack(self, message: M) -> Future[None]:
        """Ack soon, in a commit shared with others, for work that has no transaction.

        :return: resolved when the commit is done. Its exception is :class:`.AlreadySettled`, or
            the database's error: then the message may come back.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        return self._open_settler().ack(message)

    def fail(self, message: M, reason: str | None = None) -> Future[None]:
        """Fail soon, in a commit shared with others; see :meth:`ack`.

        :return: its exception may be :class:`.LeaseLost`.
        """
        return self._open_settler().fail(message, reason)

    def retry(self, message: M, delay: float | timedelta | None = None) -> Future[None]:
        """Retry soon, in a commit shared with others; see :meth:`ack`.

        :return: its exception may be :class:`.LeaseLost`.
        """
        return self._open_settler().retry(message, delay)

    def extend(self, messages: Sequence[M], seconds: float | timedelta) -> list[M]:
        """Let the leases of messages end this long from now, in a transaction of its own.

        Rows that a transaction has locked are left as they are: it is settling them.

        :param messages: received by this subscriber.
        :param seconds: more than 0 seconds, or a timedelta.
        :return: those whose lease is over, and which others may have.
        :raises SubscriberClosed: when the subscriber isn't open.
        """
        engine = self._engine
        if engine is None:
            raise self._closed()
        return leases.extend_free(self.model, engine, messages, seconds)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all settlements handed to this subscriber are committed or have failed.

        :param timeout: seconds to wait at most.
        :return: False when the time was over first.
        """
        return self._open_settler().flush(timeout)

    def _open_settler(self) -> Settler[M]:
        settler = self._settler
        if settler is None or self._closing.is_set():
            raise self._closed()
        return settler

    def _take(self, n: int) -> list[M]:
        taken = self._holdings.take(n)
        for message in taken:
            lease = lease_of(message)
            assert lease is not None
            lease.on_settling(self._on_settling)
        if self._is_needed:
            self._needed.notify()
        return taken

    def _on_settling(self, leases: Sequence[Lease]) -> None:
        with self._needed:
            self._holdings.note_settling(leases)
            if self._holdings.may_want_more:
                self._needed.notify()

    def _deliver(self, messages: list[M]) -> None:
        """Take in what was leased. From the subscriber's thread, or one that reads a stream."""
        with self._changed:
            is_urgent = self._accept(messages)
            self._changed.notify(len(messages))
            if is_urgent:
                self._needed.notify()
        if is_urgent:
            self._wake.set()

    def _report(self, *more: Event) -> None:
        """Tell what happened, without the lock."""
        if self._on_event is None:
            return
        with self._changed:
            events = [*self._holdings.drain_events(), *more]
        self._tell(events)

    def _run(self, transport: Transport[M], settler: Settler[M], engine: Engine) -> None:
        """Receive until closed, reconnecting as often as it takes."""
        from tenacity import (
            Retrying,
            retry_if_exception_type,
            sleep_using_event,
            stop_when_event_set,
        )  # fmt: skip
        from tenacity.wait import wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception_type(lost_connection_errors(engine)),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_BACKOFF),
            sleep=sleep_using_event(self._stopping),
            stop=stop_when_event_set(self._stopping),
            before_sleep=self._log_lost_connection,
            reraise=True,
        )
        try:
            while not self._stopping.is_set():
                retrying(self._receive, transport, engine)
        except BaseException as error:
            if not self._stopping.is_set():
                log.exception("the subscriber has stopped", extra={"queue": self._queue})
                self._error = error
        finally:
            self._give_back_all(transport)
            if self._error is None:
                self._closing.wait()
            settler.close()
            transport.close()
            with self._changed:
                self._holdings.free_places()
                self._changed.notify_all()
            self._report()

    def _receive(self, transport: Transport[M], engine: Engine) -> None:
        self._wait_until_needed()
        self._put_right(transport, engine)
        if self._wake.wait(transport.pause):
            self._wake.clear()
            transport.pause = 0.0
        with self._needed:
            self._holdings.free_places()
            room = self._holdings.room if self._holdings.wants_more else 0
        if room and not self._stopping.is_set():
            transport.look(room)
        if self._disconnected:
            self._disconnected = False
            self._report(Reconnected(self._queue))

    def _wait_until_needed(self) -> None:
        """Wait until it pays to receive, or something is to be put right, or it is to stop."""
        with self._needed:
            while not self._stopping.is_set():
                self._holdings.free_places()
                if self._is_needed:
                    break
                self._needed.wait(self._holdings.until_change(1))
        self._report()

    def _put_right(self, transport: Transport[M], engine: Engine) -> None:
        """Let die what has run out of attempts; give back what is stale, or too much."""
        with self._needed:
            worn, self._worn = self._worn, []
            stale = self._holdings.stale
        if worn:
            self._report(*self._let_die(worn, engine))
        if stale:
            transport.give_back(stale)
            with self._needed:
                self._holdings.drop_stale(stale)
        if self._holdings.room < 0:
            transport.stop()
            with self._needed:
                surplus = self._holdings.drop_surplus()
                self._changed.notify_all()  # Places may have become free for what is left.
            if surplus:
                transport.give_back(surplus)

    def _give_back_all(self, transport: Transport[M]) -> None:
        unseen: list[M] = []
        try:
            transport.stop()
            with self._needed:
                unseen = self._holdings.drop_unseen()
            if unseen:
                transport.give_back(unseen)
        except Exception as error:  # noqa: BLE001  # Closing must go on.
            self._note_not_given_back(len(unseen), error)

    def _log_lost_connection(self, state: object) -> None:
        outcome = getattr(state, "outcome", None)
        reason = self._note_lost_connection(outcome.exception() if outcome else None)
        self._report(Reconnecting(self._queue, reason))
