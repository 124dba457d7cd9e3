"""Settle messages: ack, fail, retry, extend, each in the caller's transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ClauseElement, Connection, Engine, Table, Update, update
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.orm import Session, class_mapper, scoped_session

from .. import clock
from ..errors import AlreadySettled, InvalidArgument, InvalidArgumentType, LeaseLost
from ..events import Outcome
from ..logs import get_logger
from ..shown import shown
from . import failures, reasons, states
from .lease import Lease, Settling, chunks_by_payload, chunks_by_shard
from .local_notify import notify_at_commit
from .message import Message, queue_table
from .queries import batch_parameters, key_parameters
from .replaced import extend_replaced, resume_replaced
from .separately import find_failures
from .transactions import Commit, call_at_commit, commits_each_statement, pending_arguments
from .transient import retry_transaction

__all__ = [
    "SessionOrConnection",
    "ack",
    "ack_unsettled",
    "check_reason",
    "connection_of",
    "engine_of",
    "extend",
    "extend_unlocked",
    "fail",
    "find_locked",
    "note_settling",
    "refuse_autocommit",
    "retry",
    "settling_connection",
]

SessionOrConnection = Session | scoped_session[Any] | Connection
"""Where a settlement is written: a Session or a Connection, inside its transaction."""

Transition = Callable[..., Update]
"""Returns an UPDATE, given a table, and ``one`` and ``leased``; see :func:`.states.fail`."""

IfReplaced = Callable[[Connection, Table, Sequence[Lease], int], int]
"""As :func:`.resume_replaced`."""

log = get_logger(__name__)


def ack(model: type[Message], session: SessionOrConnection, leases: Sequence[Lease]) -> int:
    """Ack messages; see :meth:`.MessageQueueMixin.ack_all`.

    :return: how many of them will be delivered again, because their payload was replaced.
    """
    table, connection = queue_table(model), settling_connection(model, session)
    values = {"time_acked": clock.now()}
    replaced = 0
    for chunk in chunks_by_payload(table, leases):
        statement = states.ack(table, one=len(chunk) == 1)
        done = connection.execute(statement, values | _parameters(table, chunk)).rowcount
        resumed = resume_replaced(connection, table, chunk, done, held=False)
        done += resumed
        replaced += resumed
        if done != len(chunk):
            raise AlreadySettled(
                f"{len(chunk) - done} of {len(chunk)} messages of {table.name!r} were acked "
                f"before, or deleted: {_shown(chunk)}. Roll this transaction back. If it has "
                f"deleted one by a statement, use {model.__name__}.cancel(session, …) for that",
                message_ids=_ids(chunk),
            )
    note_settling(connection, table, "ack", leases)
    return replaced


def fail(
    model: type[Message],
    session: SessionOrConnection,
    leases: Sequence[Lease],
    reason: str | None,
) -> None:
    """Fail messages; see :meth:`.MessageQueueMixin.fail_all`."""
    check_reason(reason)
    table, connection = queue_table(model), settling_connection(model, session)
    _settle_failed(model, connection, leases, reason, states.fail)
    note_settling(connection, table, "fail", leases)
    for lease in leases:
        extra = {"queue": table.name, "message_id": lease.message_id, "epoch": lease.epoch}
        log.warning("message %d failed: %s", lease.message_id, reason or "no reason given",
                    extra=extra)  # fmt: skip


def _settle_failed(
    model: type[Message],
    connection: Connection,
    leases: Sequence[Lease],
    reason: str | None,
    transition: Transition,
) -> None:
    """Make a transition of messages that failed, with the reason if it can be stored.

    :param transition: takes the values to store as keyword arguments; see :func:`.states.fail`.
    """
    table = queue_table(model)
    for kept in reasons.storable(table, reason, connection.dialect):
        values = failures.record(table) | kept
        try:
            _update_held(model, connection, leases, partial(transition, **values))
            break
        except (StatementError, UnicodeError) as error:
            if not kept or not reasons.may_be_the_cause(error):
                raise


def check_reason(reason: str | None) -> None:
    """Check the reason of a failure.

    :raises InvalidArgumentType: when it is no str.
    """
    if reason is not None and not isinstance(reason, str):
        raise InvalidArgumentType(f"reason={shown(reason)}: expected a str")


def retry(
    model: type[Message],
    session: SessionOrConnection,
    leases: Sequence[Lease],
    delay: float | timedelta | None,
    reason: str | None = None,
) -> None:
    """Retry messages; see :meth:`.MessageQueueMixin.retry_all`."""
    check_reason(reason)
    wait = None if delay is None else clock.to_nanoseconds(clock.to_seconds(delay, "delay"))
    table, connection = queue_table(model), settling_connection(model, session)
    # A column fail_reason of the model's own is for messages that failed for good.
    stored = reason if failures.are_kept(table) else None
    _settle_failed(model, connection, leases, stored, partial(states.retry, delay=wait))
    note_settling(connection, table, "retry", leases)
    if wait == 0:
        notify_at_commit(connection, table)


def extend_unlocked(
    model: type[Message], engine: Engine, leases: Iterable[Lease], seconds: float | timedelta
) -> list[Lease]:
    """Extend the leases of rows that no transaction has locked, in transactions of their own.

    :return: those that are lost. What fails for one of them doesn't concern the others.
    """
    lost: list[Lease] = []
    extend_some = partial(_extend_some, model, engine, seconds)
    for chunk in chunks_by_shard(leases):
        for lease, error in find_failures(extend_some, chunk):
            if isinstance(error, LeaseLost):
                lost.append(lease)
            else:
                log.warning(
                    "the lease of message %d could not be extended: %s",
                    lease.message_id, reasons.describe_error(error),
                    extra={"queue": queue_table(model).name, "message_id": lease.message_id},
                )  # fmt: skip
    return lost


def _extend_some(
    model: type[Message], engine: Engine, seconds: float | timedelta, leases: Sequence[Lease]
) -> None:
    def extend_in_transaction() -> None:
        with engine.begin() as connection:
            locked = find_locked(model, connection, leases)
            extend(model, connection, [one for one in leases if one not in locked], seconds)

    retry_transaction(extend_in_transaction)


def find_locked(
    model: type[Message], connection: Connection, leases: Iterable[Lease]
) -> set[Lease]:
    """Return those leases whose rows other transactions have locked, and lock the others."""
    table = queue_table(model)
    locked: set[Lease] = set()
    for chunk in chunks_by_shard(leases):
        some = _many(table, chunk)
        there = set(connection.scalars(states.find_ids(table), some))
        there -= set(connection.scalars(states.lock_held(table), some))
        locked.update(lease for lease in chunk if lease.message_id in there)
    return locked


def extend(
    model: type[Message],
    session: SessionOrConnection,
    leases: Sequence[Lease],
    seconds: float | timedelta,
) -> None:
    """Extend leases; see :meth:`.MessageQueueMixin.extend_all`."""
    length = clock.to_seconds(seconds, "seconds", minimum=0.001)
    nanoseconds = clock.to_nanoseconds(length)
    ends = time.monotonic() + length
    connection = connection_of(model, session)

    def move_ends(leases: Sequence[Lease], _commit: Commit) -> None:
        for lease in leases:
            lease.usable_until = lease.expires_at = ends

    _update_held(
        model,
        connection,
        leases,
        partial(states.extend, length=nanoseconds),
        partial(extend_replaced, length=nanoseconds),
    )
    call_at_commit(connection, move_ends, leases)


def _update_held(
    model: type[Message],
    connection: Connection,
    leases: Sequence[Lease],
    transition: Transition,
    if_replaced: IfReplaced = resume_replaced,
) -> None:
    """Make a transition of messages whose lease holds.

    :param if_replaced: makes that of messages whose payload was replaced.
    :raises LeaseLost: when the lease of any of them is over.
    """
    table = queue_table(model)
    if settled := [lease for lease in leases if lease.is_settled]:
        raise LeaseLost(
            f"these messages of {table.name!r} are settled already: {_shown(settled)}",
            message_ids=_ids(settled),
        )
    Lease.confirm_delivery(leases)
    by_fence: dict[tuple[int, bool], list[Lease]] = defaultdict(list)
    for lease in leases:
        by_fence[lease.fence, lease.is_received].append(lease)
    for (fence, is_received), of_one_fence in by_fence.items():
        for chunk in chunks_by_payload(table, of_one_fence):
            statement = transition(table, one=len(chunk) == 1, leased=is_received)
            parameters = _parameters(table, chunk) | {"_fence": fence}
            done = connection.execute(statement, parameters).rowcount
            done += if_replaced(connection, table, chunk, done)
            if done != len(chunk):
                raise LeaseLost(
                    f"the lease of {len(chunk) - done} of {len(chunk)} messages of {table.name!r} "
                    f"is over: each is settled, or due, or was delivered again: {_shown(chunk)}",
                    message_ids=_ids(chunk),
                )


def note_settling(
    connection: Connection, table: Table, outcome: Outcome, leases: Sequence[Lease]
) -> None:
    """Notify the holders of leases when the transaction commits."""
    if leases:
        call_at_commit(connection, Lease.settle, Settling(outcome, leases, table))


def ack_unsettled(
    model: type[Message], session: SessionOrConnection, leases: Sequence[Lease]
) -> int:
    """Ack messages that nobody in this process has settled.

    What :meth:`.Subscriber.ack` and the like are about to settle counts. So does what the session's
    transaction has settled, also when it did so by another instance, and
    unless that was in a savepoint that was rolled back.

    :return: as :func:`ack`.
    """
    table, connection = queue_table(model), connection_of(model, session)
    settled = {
        lease.key: (lease, settling.outcome)
        for settling in pending_arguments(connection)
        if isinstance(settling, Settling) and settling.table is table
        for lease in settling.leases
    }
    unsettled: list[Lease] = []
    for lease in leases:
        if lease.key in settled:
            other, outcome = settled[lease.key]
            if other is not lease:
                note_settling(connection, table, outcome, [lease])
        elif not (lease.is_promised or lease.is_settled):
            unsettled.append(lease)
    return ack(model, session, unsettled)


def settling_connection(model: type[Message], session: SessionOrConnection) -> Connection:
    """Return the connection of the caller's transaction, which is to settle messages.

    :raises InvalidArgument: when there is no transaction, because each statement commits by itself.
    """
    connection = connection_of(model, session)
    refuse_autocommit(connection, "a settlement")
    return connection


def refuse_autocommit(connection: Connection, what: str) -> None:
    """Check that a connection has transactions.

    :raises InvalidArgument: when each of its statements commits by itself.
    """
    if commits_each_statement(connection):
        raise InvalidArgument(
            f"session: its connection to {shown(connection.engine)} is in autocommit mode, in "
            f"which each statement commits by itself: {what} can neither commit with the work nor "
            "be rolled back with it. Use a session with another isolation level than AUTOCOMMIT"
        )


def connection_of(
    model: type[Message], session: SessionOrConnection, clause: ClauseElement | None = None
) -> Connection:
    """Return the connection of the caller's transaction.

    :param clause: the statement that it is for, as a session may have several engines and choose
        by that. Default: one that writes.
    :raises InvalidArgumentType: for what is neither a Session nor a Connection.
    """
    if isinstance(session, Connection):
        return session
    if isinstance(session, (Session, scoped_session)):
        return session.connection(bind_arguments={"bind": _bind(model, session, clause)})
    raise InvalidArgumentType(
        f"session={shown(session)}: expected a Session or a Connection; with an AsyncSession, "
        "await session.run_sync(message.ack)"
    )


def engine_of(model: type[Message], session: Session) -> Engine:
    """Return the engine of :func:`connection_of`, which isn't connected by this."""
    return _bind(model, session, None).engine


def _bind(
    model: type[Message], session: Session | scoped_session[Any], clause: ClauseElement | None
) -> Engine | Connection:
    """Return what a session chooses for a statement; see :func:`connection_of`.

    :raises InvalidArgument: when its own way to choose fails, such as that of a ShardedSession
        which looks at an instance: a statement may be about many.
    """
    clause = update(queue_table(model)) if clause is None else clause
    try:
        return session.get_bind(mapper=class_mapper(model), clause=clause)
    except SQLAlchemyError:
        raise
    except Exception as error:
        raise InvalidArgument(
            f"session={shown(session)}: its get_bind, or shard_chooser, raised "
            f"{reasons.describe_error(error)}. It is asked for the engine of a statement on "
            f"{queue_table(model).name!r}, without an instance. Use a session of one engine, or a "
            "Connection"
        ) from error


def _parameters(table: Table, leases: Sequence[Lease]) -> dict[str, Any]:
    """Return what identifies the row of one lease by its key, or those of several by their id."""
    return key_parameters(table, leases[0].key) if len(leases) == 1 else _many(table, leases)


def _many(table: Table, leases: Sequence[Lease]) -> dict[str, Any]:
    return batch_parameters(table, [lease.key for lease in leases])


def _ids(leases: Sequence[Lease]) -> list[int]:
    return [lease.message_id for lease in leases]


def _shown(leases: Sequence[Lease]) -> str:
    """Return the ids for an error's text, the first ten of them."""
    ids = ", ".join(map(str, _ids(leases[:10])))
    return ids if len(leases) <= 10 else f"{ids}, …"
