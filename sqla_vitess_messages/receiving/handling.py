"""Handle received messages: run the handler and ack in one transaction, or retry, or fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, exc
from sqlalchemy.orm import Session

from ..errors import LeaseLost
from ..logs import get_logger
from ..rows import settle
from ..rows.lease import Lease, leases_of
from ..rows.lost import is_away, is_lost, is_of, watch
from ..rows.message import Message, queue_table
from ..rows.reasons import describe_error
from ..rows.reload import load_again, load_eager_relationships
from ..rows.transactions import listen_to
from ..runtime import Runtime
from .loop import ReceiveLoop
from .renewal import LeaseRenewals
from .repetition import Repetition, is_busy
from .retries import Discard, Retry, RetryDecision, RetryPolicy, decide, is_exhausted, only_error

__all__ = ["BeginHandling", "MessageProcessor", "check_sessions", "handle_in_session"]

M = TypeVar("M", bound=Message)

log = get_logger(__name__)

RunHandler = Callable[[Any], object]
"""Runs a handler with a message, or with a list of them."""

BeginHandling = Callable[[], AbstractContextManager[tuple[Session, RunHandler]]]
"""Begins a transaction, which commits with the block. Gives its session, and a function that runs
the handler in it."""


def check_sessions(model: type[Message], begin: BeginHandling) -> None:
    """Check that handlers get sessions with transactions, and listen for the ends of those.

    :raises InvalidArgument: when each of their statements commits by itself.
    :raises InvalidArgumentType: when what they get is no session.
    """
    # That the database is busy or away is no reason to refuse them.
    with suppress(exc.DBAPIError, exc.TimeoutError), begin() as (session, _run_handler):
        listen_to(settle.settling_connection(model, session).engine)


def handle_in_session(
    model: type[M],
    session: Session,
    messages: list[M],
    run_handler: Callable[[list[M]], object],
    before_ack: Callable[[], None] = lambda: None,
) -> None:
    """Add messages to the session, run a handler, and ack what it has not settled.

    :param messages: which belong to no session.
    """
    leases = leases_of(model, messages)
    session.add_all(messages)
    load_eager_relationships(model, session, messages, leases)
    run_handler(messages)
    before_ack()
    if session.deleted:
        session.flush()  # A message is settled by its deletion.
    settle.ack_unsettled(model, session, leases)


def _is_of_a_database(error: BaseException) -> bool:
    return isinstance(error, (exc.DBAPIError, exc.TimeoutError))


class MessageProcessor(Generic[M]):
    """Runs a handler for messages, and settles them.

    What the handler does with an instance is of no consequence: everything else uses the leases.

    :param begin: begins the transaction of a handler, or of a settlement alone.
    :param loop: has handed out the messages.
    :param batch_size: None where the handler takes one message instead of a list.
    :param repeat: calls a transaction, several times if necessary.
    """

    def __init__(
        self,
        model: type[M],
        begin: BeginHandling,
        loop: ReceiveLoop[M],
        *,
        retry: RetryPolicy,
        batch_size: int | None,
        renewals: LeaseRenewals,
        repeat: Repetition,
        runtime: Runtime,
    ) -> None:
        self._model = model
        self._queue = queue_table(model).name
        self._begin = begin
        self._loop = loop
        self._retry = retry
        self._batch_size = batch_size
        self._renewals = renewals
        self._repeat = repeat
        self._runtime = runtime
        self._engine: Engine | None = None
        """The engine of the sessions, as far as messages are concerned."""

    def process(self, messages: Sequence[M], leases: Sequence[Lease]) -> None:
        """Handle and settle messages. Only a cancellation is raised."""
        received: list[M] = []
        usable: list[Lease] = []
        for message, lease in zip(messages, leases, strict=True):
            if is_exhausted(self._retry, lease.attempts):
                reason = f"handed out {lease.attempts} times and never settled"
                self._settle(lease, RetryDecision(None, reason))
            else:
                received.append(message)
                usable.append(lease)
        if len(usable) == 1:
            self._handle_one(usable[0], received)
        elif usable and not self._handle_batch(usable, received):
            for lease in usable:
                self._handle_one(lease, [])

    def release(self, leases: Sequence[Lease]) -> None:
        """Make messages ready for others at once, whose handlers were cancelled."""
        self._renewals.resume(leases)
        for lease in leases:
            if not lease.is_settled:
                self._settle(lease, RetryDecision(0, "cancelled"))

    def _handle_batch(self, leases: Sequence[Lease], received: list[M]) -> bool:
        """Handle messages in one transaction, and return whether that is done with."""
        try:
            self._handle(leases, received)
        except BaseException as error:
            if self._runtime.is_cancellation(error):
                raise
            if self._is_passing(error, is_away):
                self._release_unhandled(leases, error)
                return True
            # Each message alone will show which of them failed.
            log.info(
                "a batch failed, its messages follow one by one: %s", describe_error(error),
                extra={"queue": self._queue},
            )  # fmt: skip
            return False
        return True

    def _handle_one(self, lease: Lease, received: list[M]) -> None:
        try:
            self._handle([lease], received)
        except BaseException as error:
            if self._runtime.is_cancellation(error):
                raise
            if self._is_passing(error, is_away):
                self._release_unhandled([lease], error)
                return
            decision = decide(self._retry, error, lease.attempts)
            log.info("rolled back: %s", decision.reason, extra=self._extra(lease), exc_info=error)
            self._settle(lease, decision)

    def _handle(self, leases: Sequence[Lease], received: list[M]) -> None:
        """Run the handler and ack, in one transaction.

        :param received: the messages as they came, for the first attempt, which takes them from
            the list. Later attempts load them again.
        """
        attempt = partial(self._handle_in_transaction, leases, received)
        self._repeat(partial(self._runtime.call_apart, attempt), self._is_passing)

    def _is_passing(
        self,
        error: BaseException,
        is_of_connection: Callable[[BaseException, Engine], bool] = is_lost,
    ) -> bool:
        """Return whether a transaction failed by no fault of the message or its handler.

        So it did when the messages' database could not serve it; another one is the handler's own
        concern, and a message that fails at each attempt must not be handled for ever.

        So it did when the connection to the messages' database was lost: all of it is rolled back,
        or its COMMIT was done, and the next attempt finds that out. But a handler that loses it
        again and again may be what ends the connections. Then only that the server is away counts.

        :param is_of_connection: :func:`.is_lost` or :func:`.is_away`.
        """
        only = only_error(error)
        if isinstance(only, (Discard, Retry)):
            return False  # The handler has decided.
        if self._engine is None:  # There was no session yet.
            return is_busy(only)
        return (is_busy(only) and is_of(only, self._engine)) or is_of_connection(only, self._engine)

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Session, RunHandler]]:
        with self._begin() as (session, run_handler):
            self._engine = settle.engine_of(self._model, session)
            watch(self._engine)
            yield session, run_handler

    def _handle_in_transaction(self, leases: Sequence[Lease], received: list[M]) -> None:
        try:
            with self._transaction() as (session, run_handler):
                messages = received.copy() or load_again(self._model, session, leases)
                received.clear()
                handle_in_session(
                    self._model,
                    session,
                    messages,
                    lambda some: run_handler(some[0] if self._batch_size is None else some),
                    partial(self._renewals.pause, leases),
                )
        except BaseException:
            self._renewals.resume(leases)
            raise

    def _release_unhandled(self, leases: Sequence[Lease], error: BaseException) -> None:
        """Release messages that the database could not serve; no attempt counts."""
        extra = {"queue": self._queue, "message_ids": [lease.message_id for lease in leases]}
        why = "is away"
        if is_busy(error):
            why = "is busy, or the handler waits for what its own session holds"
        log.warning("the database %s; released: %s", why, describe_error(error), extra=extra)
        try:
            self._repeat(partial(self._loop.release, leases), _is_of_a_database)
        except BaseException as failure:
            if self._runtime.is_cancellation(failure):
                raise
            log.exception("not released; the messages come back later", extra=extra)

    def _settle(self, lease: Lease, decision: RetryDecision) -> None:
        """Retry or fail a message, in a transaction of its own."""
        if lease.is_promised:
            return  # The handler has handed another settlement to the subscriber.
        try:
            self._renewals.pause([lease])
            self._repeat(partial(self._settle_in_transaction, lease, decision), self._is_passing)
        except LeaseLost as error:
            log.warning("others have the message: %s", error, extra=self._extra(lease))
            self._loop.drop([lease])
        except BaseException as error:
            if self._runtime.is_cancellation(error):
                raise
            log.exception("not settled; the message comes back later", extra=self._extra(lease))

    def _settle_in_transaction(self, lease: Lease, decision: RetryDecision) -> None:
        with self._transaction() as (session, _run_handler):
            if decision.delay is None:
                settle.fail(self._model, session, [lease], decision.reason)
            else:
                settle.retry(self._model, session, [lease], decision.delay, decision.reason)

    def _extra(self, lease: Lease) -> dict[str, object]:
        return {"queue": self._queue, "message_id": lease.message_id, "epoch": lease.epoch}
