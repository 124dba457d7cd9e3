"""Settle messages: ack, fail, retry, extend, each in the caller's transaction."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ClauseElement, Connection, Engine, Table, Update, update
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session, class_mapper, scoped_session

from .. import clock
from ..errors import AlreadySettled, InvalidArgument, InvalidArgumentType, LeaseLost
from ..events import Outcome
from . import reasons, states
from .lease import Lease, Settling, chunks_by_shard
from .message import Message, queue_table
from .queries import batch_parameters, key_parameters
from .transactions import Commit, call_at_commit, commits_each_statement, pending_arguments
from .transient import retry_transaction

__all__ = [
    "SessionOrConnection",
    "ack",
    "check_reason",
    "connection_of",
    "extend",
    "extend_unlocked",
    "fail",
    "refuse_autocommit",
    "retry",
    "settling_connection",
    "unsettled",
]

SessionOrConnection = Session | scoped_session[Any] | Connection
"""Where a settlement is written: a Session or a Connection, inside its transaction."""

Transition = Callable[[Table, bool, bool], Update]
"""Returns an UPDATE, given ``(table, one, leased)``; see :func:`.states.fail`."""

log = logging.getLogger(__name__)


def ack(model: type[Message], session: SessionOrConnection, leases: Sequence[Lease]) -> None:
    """Ack messages; see :meth:`.MessageQueueMixin.ack_all`."""
    table, connection = queue_table(model), settling_connection(model, session)
    values = {"time_acked": clock.now()}
    for chunk in chunks_by_shard(leases):
        statement = states.ack(table, one=len(chunk) == 1)
        done = connection.execute(statement, values | _parameters(table, chunk)).rowcount
        if done != len(chunk):
            raise AlreadySettled(
                f"{len(chunk) - done} of {len(chunk)} messages of {table.name!r} were acked "
                f"before (or purged since): {_shown(chunk)}. Roll this transaction back",
                message_ids=_ids(chunk),
            )
    _note_settling(connection, table, "ack", leases)


def fail(
    model: type[Message],
    session: SessionOrConnection,
    leases: Sequence[Lease],
    reason: str | None,
) -> None:
    """Fail messages; see :meth:`.MessageQueueMixin.fail_all`."""
    check_reason(reason)
    table, connection = queue_table(model), settling_connection(model, session)
    for kept in reasons.storable(table, reason, connection.dialect):
        try:
            _fail(model, connection, leases, kept)
            break
        except (StatementError, UnicodeError) as error:
            if not kept or not reasons.may_be_the_cause(error):
                raise
    _note_settling(connection, table, "fail", leases)
    for lease in leases:
        extra = {"queue": table.name, "message_id": lease.message_id, "epoch": lease.epoch}
        log.warning("message %d failed: %s", lease.message_id, reason or "no reason given",
                    extra=extra)  # fmt: skip


def _fail(
    model: type[Message],
    connection: Connection,
    leases: Sequence[Lease],
    values: Mapping[str, str],
) -> None:
    _update_held(
        model,
        connection,
        leases,
        lambda table, one, leased: states.fail(table, one=one, leased=leased, **values),
    )


def check_reason(reason: str | None) -> None:
    """Check the reason of a failure.

    :raises InvalidArgumentType: when it is no str.
    """
    if reason is not None and not isinstance(reason, str):
        raise InvalidArgumentType(f"reason={reason!r}: expected a str")


def retry(
    model: type[Message],
    session: SessionOrConnection,
    leases: Sequence[Lease],
    delay: float | timedelta | None,
) -> None:
    """Retry messages; see :meth:`.MessageQueueMixin.retry_all`."""
    wait = None if delay is None else clock.to_nanoseconds(clock.to_seconds(delay, "delay"))
    table, connection = queue_table(model), settling_connection(model, session)
    _update_held(
        model,
        connection,
        leases,
        lambda table, one, leased: states.retry(table, one=one, leased=leased, delay=wait),
    )
    _note_settling(connection, table, "retry", leases)


def extend_unlocked(
    model: type[Message], engine: Engine, leases: Iterable[Lease], seconds: float | timedelta
) -> list[Lease]:
    """Extend the leases of rows that no transaction has locked, in transactions of their own.

    :return: those that are lost.
    """
    lost: list[Lease] = []
    for chunk in chunks_by_shard(leases):
        try:
            retry_transaction(partial(_extend_chunk, model, engine, chunk, seconds))
        except LeaseLost:
            # Extend each alone, to find which is lost.
            if len(chunk) == 1:
                lost += chunk
            else:
                for lease in chunk:
                    lost += extend_unlocked(model, engine, [lease], seconds)
    return lost


def _extend_chunk(
    model: type[Message], engine: Engine, leases: Sequence[Lease], seconds: float | timedelta
) -> None:
    table = queue_table(model)
    with engine.begin() as connection:
        locking = states.lock_held(table)
        unlocked: set[int] = set(connection.scalars(locking, _many(table, leases)))
        some = [lease for lease in leases if lease.message_id in unlocked]
        extend(model, connection, some, seconds)


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
        lambda table, one, leased: states.extend(table, one=one, leased=leased, length=nanoseconds),
    )
    call_at_commit(connection, move_ends, leases)


def _update_held(
    model: type[Message],
    connection: Connection,
    leases: Sequence[Lease],
    transition: Transition,
) -> None:
    """Make a transition of messages whose lease holds.

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
        for chunk in chunks_by_shard(of_one_fence):
            statement = transition(table, len(chunk) == 1, is_received)
            parameters = _parameters(table, chunk) | {"_fence": fence}
            done = connection.execute(statement, parameters).rowcount
            if done != len(chunk):
                raise LeaseLost(
                    f"the lease of {len(chunk) - done} of {len(chunk)} messages of {table.name!r} "
                    f"is over: each is settled, or due, or was delivered again: {_shown(chunk)}",
                    message_ids=_ids(chunk),
                )


def _note_settling(
    connection: Connection, table: Table, outcome: Outcome, leases: Sequence[Lease]
) -> None:
    """Notify the holders of leases when the transaction commits."""
    if leases:
        call_at_commit(connection, Lease.settle, Settling(outcome, leases, table))


def unsettled(
    model: type[Message], session: SessionOrConnection, leases: Sequence[Lease]
) -> list[Lease]:
    """Return those leases that nobody in this process has settled.

    What the session's transaction has settled counts, also when it did so by another instance, and
    unless that was in a savepoint that was rolled back.
    """
    table = queue_table(model)
    settled = {
        lease.key
        for settling in pending_arguments(connection_of(model, session))
        if isinstance(settling, Settling) and settling.table is table
        for lease in settling.leases
    }
    return [lease for lease in leases if not (lease.is_settled or lease.key in settled)]


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
            f"session: its connection to {connection.engine!r} is in autocommit mode, in which "
            f"each statement commits by itself: {what} can neither commit with the work nor be "
            "rolled back with it. Use a session with another isolation level than AUTOCOMMIT"
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
        mapper = class_mapper(model)
        clause = update(queue_table(model)) if clause is None else clause
        return session.connection(bind_arguments={"mapper": mapper, "clause": clause})
    raise InvalidArgumentType(
        f"session={session!r}: expected a Session or a Connection; with an AsyncSession, "
        "await session.run_sync(message.ack)"
    )


def _parameters(table: Table, leases: Sequence[Lease]) -> dict[str, Any]:
    """Return what identifies the row of one lease by its key, or those of several by their id."""
    return key_parameters(table, leases[0].key) if len(leases) == 1 else _many(table, leases)


def _many(table: Table, leases: Sequence[Lease]) -> dict[str, Any]:
    return batch_parameters(table, [lease.key for lease in leases])


def _ids(leases: Sequence[Lease]) -> list[int]:
    return [lease.message_id for lease in leases]


def _shown(leases: Sequence[Lease]) -> str:
    """Return the ids for an error's text, the first ten of them."""
    shown = ", ".join(map(str, _ids(leases[:10])))
    return shown if len(leases) <= 10 else f"{shown}, …"
