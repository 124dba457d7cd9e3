"""The receiving engine: leases messages for one subscriber, and hands them out.

It is synchronous code over a :class:`~sqla_vitess_messages.runtime.Runtime`, the same for threads
and for asyncio.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy import Engine

from ..errors import SubscriberClosed
from ..events import Dead, Event, Reconnected, Reconnecting
from ..forking import forget_in_child
from ..logs import get_logger
from ..reconnecting import lost_connection_errors, repeat_until_stopped
from ..rows import settle
from ..rows.lease import Lease
from ..rows.message import Message, queue_table
from ..rows.transient import is_transient
from ..runtime import Runtime, Task
from ..table.order import is_ordered
from ..transports.base import Transport, Unloadable
from ..transports.choice import Grpc, Pull, Stream
from ..transports.engines import leave_to_parent
from ..transports.factory import make_transport
from .batcher import SettlementBatcher, settle_together
from .emitting import EventEmitter
from .in_flight import InFlight
from .pausing import PauseGate
from .rejection import Reject, Rejection, settle_rejected

__all__ = ["ReceiveLoop"]

M = TypeVar("M", bound=Message)

CLOSE_TIMEOUT = 1.8
"""Seconds that :meth:`ReceiveLoop.close` waits for the server."""

ABANDON_TIMEOUT = 0.1
"""Seconds that :meth:`ReceiveLoop.abandon` waits for the lock, which is never held for long."""

IDLE_CHECK_INTERVAL = 1.0
"""Seconds until a subscriber that has no work checks again whether slots became free."""

log = get_logger(__name__)


class ReceiveLoop(Generic[M]):
    """Receives messages from the opening of a subscriber to its closing.

    :param engine: is the loop's own.
    :param in_flight: the messages of the subscriber, which outlive the loop.
    :param lock: guards ``in_flight`` and the state of this object.
    :param reject: tells the messages that are not to be handed out from the others.
    :param emitter: is used without the lock.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        in_flight: InFlight[M],
        lock: threading.RLock,
        runtime: Runtime,
        *,
        reject: Reject[M],
        emitter: EventEmitter,
    ) -> None:
        self._model = model
        self._queue = queue_table(model).name
        self._has_followers = is_ordered(queue_table(model))
        self._engine = engine
        self._gate = PauseGate(queue_table(model), engine)
        self._in_flight = in_flight
        self._add_settling = partial(self._on_settling, in_flight)
        self._runtime = runtime
        self._reject = reject
        self._emitter = emitter
        self._lock = lock
        self._messages_available = runtime.condition(lock)
        self._work_available = runtime.condition(lock)
        self._poll_requested = runtime.condition(lock)
        self._closing_requested = runtime.condition(lock)
        self._poll_now = self._stopping = self._closing = self._disconnected = False
        self._is_parents = False
        self._rejected: list[Rejection] = []
        self._error: BaseException | None = None
        self._transport: Transport[M]
        self._batcher: SettlementBatcher
        self._task: Task

    def open(self, choice: Pull | Stream | Grpc) -> None:
        """Connect and begin to receive.

        :raises QueueNotFound: when the table is missing, or is not the model's queue.
        :raises sqlalchemy.exc.OperationalError: when the database can't be reached.
        """
        connecting = partial(
            make_transport, self._model, self._engine, choice, receiver=self, runtime=self._runtime
        )
        try:
            self._transport = self._runtime.call(connecting)
        except BaseException:
            self._engine.dispose()
            raise
        settle_group = partial(settle_together, self._model, self._engine)
        self._batcher = SettlementBatcher(
            lambda group: self._runtime.call(settle_group, group), self._runtime
        )
        forget_in_child(self)
        self._task = self._runtime.start(self._run, f"Subscriber({self._queue})")

    @property
    def batcher(self) -> SettlementBatcher:
        """Commits grouped settlements.

        :raises SubscriberClosed: when the loop is closing.
        """
        if self._closing or self.has_ended:
            raise self._closed()
        return self._batcher

    def stop_receiving(self) -> None:
        """Release messages that nobody has got, and receive nothing more."""
        with self._lock:
            self._stopping = True
            self._notify_all()
        self._transport.interrupt()

    def _notify_all(self) -> None:
        self._messages_available.notify_all()
        self._work_available.notify_all()
        self._poll_requested.notify_all()
        self._closing_requested.notify_all()

    def close(self) -> None:
        """Stop receiving, commit grouped settlements, and disconnect.

        Returns within two seconds, also if the server doesn't answer.
        """
        self._closing = True
        self.stop_receiving()
        if not self._task.join(CLOSE_TIMEOUT):
            log.warning(
                "the server doesn't answer; messages of this subscriber come back after ack_wait",
                extra={"queue": self._queue},
            )
            self._detach()
            self._batcher.cancel()
            if self._task.cancel():
                self._task.join(0.1)

    def _detach(self) -> None:
        """Leave the slots to a successor: what this loop is still to receive, it will release."""
        self._emitter.silence()
        with self._lock:
            own: InFlight[M] = InFlight(self._queue, 0, emit_events=False)
            own.add(self._in_flight.take_all_waiting())
            self._in_flight = own

    def abandon(self) -> None:
        """Make the loop end, and don't wait for it. Called by the garbage collector."""
        self._stopping = self._closing = True
        if self._lock.acquire(timeout=ABANDON_TIMEOUT):
            self._notify_all()
            self._lock.release()
        self._transport.interrupt()

    def forget_parent(self) -> None:
        """Leave the messages and connections to the process that opened the subscriber."""
        self._is_parents = True
        for engine in self._transport.engines():
            leave_to_parent(engine)

    @property
    def has_ended(self) -> bool:
        """Whether it receives nothing more, though it may not have been closed."""
        return not self._task.is_alive

    def get_many(self, limit: int, timeout: float | None) -> list[M]:
        """Return waiting messages as soon as there is one; see :meth:`.Subscriber.get_many`.

        :raises BaseException: the error that ended the loop, if one has.
        """
        end = None if timeout is None else time.monotonic() + timeout
        try:
            with self._lock:
                while not (messages := self._checkout(limit)):
                    remaining = None if end is None else end - time.monotonic()
                    if remaining is not None and remaining <= 0:
                        break
                    self._messages_available.wait(remaining)
                return messages
        finally:
            self._flush_events()

    def _checkout(self, limit: int) -> list[M]:
        if self._error is not None:
            raise self._error
        if self._stopping or self.has_ended:
            raise self._closed()
        if self._gate.is_closed:
            return []
        messages = self._in_flight.checkout(limit, self._add_settling)
        if self._has_work:
            self._work_available.notify()
        if self._has_followers and self._in_flight.has_settled:
            self._poll_requested.notify()
        return messages

    def _closed(self) -> SubscriberClosed:
        return SubscriberClosed(f"the subscriber of {self._queue!r} is not open")

    def extend(self, leases: Sequence[Lease], seconds: float) -> list[Lease]:
        """Extend leases in transactions of their own, and return those that are lost."""
        extending = partial(settle.extend_unlocked, self._model, self._engine)
        try:
            return self._runtime.call(extending, leases, seconds)
        except lost_connection_errors(self._engine) as error:
            self._disconnect_after(error)
            raise

    def release(self, leases: Sequence[Lease]) -> None:
        """Make messages that were handed out ready for others, as if they had not been."""
        self._runtime.call(self._transport.release_leases, leases)
        self.drop(leases)

    def drop(self, leases: Sequence[Lease]) -> None:
        """Forget messages that were handed out, and whose leases are known to be over."""
        with self._lock:
            self._in_flight.drop(leases)
            self._work_available.notify()

    def _on_settling(self, slots: InFlight[M], leases: Sequence[Lease]) -> None:
        if self._is_parents:
            return  # Its slots are none of this process, and its lock may never be free.
        with self._lock:
            slots.add_settling(leases)
            if slots.may_want_more:
                self._work_available.notify()
                if self._has_followers:
                    self._poll_requested.notify()

    def deliver(self, messages: Sequence[M], unloadable: Sequence[Unloadable] = ()) -> None:
        """Accept leased messages: from the loop, or from what reads a stream."""
        messages, rejected = self._reject(messages, unloadable)
        with self._lock:
            self._rejected += rejected
            self._in_flight.add(messages)
            self._messages_available.notify(len(messages))
            if self._must_release:
                self._work_available.notify()
                self._request_poll()

    def emit(self, event: Event) -> None:
        """Report an event of the transport."""
        self._flush_events(event)

    def poll_now(self) -> None:
        """Poll without waiting for the end of the pause."""
        with self._lock:
            self._request_poll()

    def _request_poll(self) -> None:
        self._poll_now = True
        self._poll_requested.notify()

    @property
    def _must_release(self) -> bool:
        return bool(self._rejected) or self._in_flight.must_release

    @property
    def _has_work(self) -> bool:
        return self._must_release or (self._in_flight.wants_more and not self._gate.is_closed)

    def _run(self) -> None:
        """Receive until closed, reconnecting as often as it takes."""
        try:
            repeat_until_stopped(
                self._receive,
                lost_connection_errors(self._engine),
                is_stopping=lambda: self._stopping,
                sleep=self._sleep_unless_stopping,
                disconnect=self._note_lost_connection,
            )
        except BaseException as error:
            if self._runtime.is_cancellation(error):
                self._stopping = self._closing = True  # The event loop ends: don't wait for close.
                raise
            if not self._stopping:
                log.exception("the subscriber has stopped", extra={"queue": self._queue})
                self._error = error
        finally:
            try:
                self._release_all()
                self._wait_until_closing()
            finally:
                self._batcher.close()
                self._runtime.call(self._transport.close)
                with self._lock:
                    self._in_flight.free_slots()
                self._flush_events()

    def _sleep_unless_stopping(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._lock:
            while not self._stopping and (remaining := end - time.monotonic()) > 0:
                self._work_available.wait(remaining)

    def _note_lost_connection(self, error: BaseException | None) -> None:
        reason = str(getattr(error, "orig", error))
        log.warning("the database failed, trying again: %s", reason, extra={"queue": self._queue})
        self._disconnected = True
        self._flush_events(Reconnecting(self._queue, reason))
        self._disconnect_after(error)

    def _disconnect_after(self, error: BaseException | None) -> None:
        """Close pooled connections, so that new ones are used: an old one may fail for ever."""
        if error is not None and is_transient(error):
            return  # Others kept the database busy: the connections are as good as before.
        try:
            self._runtime.call(self._transport.disconnect)
        except Exception as failure:  # noqa: BLE001  # They are lost anyway.
            log.info("disconnecting failed: %s", failure, extra={"queue": self._queue})

    def _receive(self) -> None:
        """Wait until there is work, do it, and poll once."""
        self._wait_for_work()
        self._settle_rejected()
        self._release_excess()
        self._follow_gate()
        self._pause()
        with self._lock:
            self._in_flight.free_slots()
            wanted = self._in_flight.wants_more and not (self._stopping or self._gate.is_closed)
            limit = self._in_flight.free
            settled = self._in_flight.take_settled()
        self._transport.note_settled(settled)
        if wanted:
            self._runtime.call(self._transport.poll, limit)
        if self._disconnected:
            self._disconnected = False
            self._flush_events(Reconnected(self._queue))

    def _wait_for_work(self) -> None:
        """Wait until it pays to receive, or messages have to be released, or the loop is to end."""
        waiting = True
        while waiting:
            with self._lock:
                self._in_flight.free_slots()
                waiting = not (self._has_work or self._stopping or self._gate.is_due)
                if waiting:
                    longest = min(IDLE_CHECK_INTERVAL, self._gate.due_at - time.monotonic())
                    longest = self._in_flight.seconds_until_change(longest)
                    self._work_available.wait(longest)
            self._flush_events()

    def _follow_gate(self) -> None:
        """Check whether the queue is paused, and release what nobody has got while it is."""
        if self._gate.is_due:
            self._runtime.call(self._gate.check)
        if self._gate.is_closed:
            self._runtime.call(self._transport.stop)
            self._transport.pause = 0.0  # When it is resumed, messages have waited for long.
            with self._lock:
                self._in_flight.set_all_aside()
            self._release_excess()

    def _pause(self) -> None:
        """Wait for the time that the transport asks for, unless a poll is requested."""
        end = time.monotonic() + self._transport.pause
        while not (self._gate.is_closed or self._wait_for_request(end)):
            self._follow_gate()

    def _wait_for_request(self, end: float) -> bool:
        """Wait until a poll is requested, or for its time; return False if the gate is first."""
        with self._lock:
            while not (self._poll_now or self._stopping or self._in_flight.has_settled):
                if (now := time.monotonic()) >= end:
                    return True
                if now >= self._gate.due_at:
                    return False
                remaining = min(end, self._gate.due_at) - now
                if self._has_followers:
                    remaining = self._in_flight.seconds_until_change(remaining)
                self._poll_requested.wait(remaining)
            self._poll_now = False
            self._transport.pause = 0.0
        return True

    def _settle_rejected(self) -> None:
        """Retry or fail messages that are not to be handed out."""
        with self._lock:
            rejected, self._rejected = self._rejected, []
        if rejected:
            dead = self._runtime.call(settle_rejected, self._model, self._engine, rejected)
            events = [Dead(self._queue, lease.message_id, lease.epoch) for lease in dead]
            self._flush_events(*events)

    def _release_excess(self) -> None:
        """Release messages that have waited for too long, and those beyond the limit."""
        with self._lock:
            unusable = self._in_flight.unusable
        if unusable:
            self._runtime.call(self._transport.release, unusable)
            with self._lock:
                self._in_flight.drop_unusable(unusable)
        if self._in_flight.free < 0:
            self._runtime.call(self._transport.stop)
            with self._lock:
                surplus = self._in_flight.take_surplus()
                self._messages_available.notify_all()  # Slots may be free for the rest.
            if surplus:
                self._runtime.call(self._transport.release, surplus)

    def _release_all(self) -> None:
        """Leave the queue, and release every message that was not handed out."""
        waiting: list[M] = []
        try:
            self._runtime.call(self._transport.stop)
            with self._lock:
                waiting = self._in_flight.take_all_waiting()
            if waiting:
                self._runtime.call(self._transport.release, waiting)
        except Exception as error:  # noqa: BLE001  # Closing must go on.
            log.warning(
                "%d messages could not be released and come back after ack_wait: %s",
                len(waiting), type(error).__name__,
                extra={"queue": self._queue},
            )  # fmt: skip
        self._flush_events()

    def _wait_until_closing(self) -> None:
        """Keep grouped settlements possible until the subscriber is closed, or has failed."""
        with self._lock:
            self._messages_available.notify_all()
            while not self._closing and self._error is None:
                self._closing_requested.wait()

    def _flush_events(self, *more: Event) -> None:
        """Emit pending events. Call without holding the lock."""
        if self._emitter.is_needed:
            with self._lock:
                events = [*self._in_flight.take_events(), *more]
            self._emitter.emit(events, self._runtime.is_cancellation)
