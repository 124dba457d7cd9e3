"""The states of a message's row, and every transition between them as a Core statement.

========== ========================= ==================== =======================================
state      ``time_next``             ``time_acked``       how it gets there
========== ========================= ==================== =======================================
scheduled  in the future, attempts 0 NULL                 enqueued with a delivery time
ready      in the past               NULL                 enqueued; released; requeued; lease over
leased     in the future, else       NULL                 :func:`lease`, :func:`extend`
dead       :data:`DEAD`              NULL                 :func:`fail`
acked      NULL                      when                 :func:`ack`
========== ========================= ==================== =======================================

A message that waits for its retry (:func:`retry`) looks like a leased one, unless its model keeps
failures: then the state is "retrying".

The row's epoch is the fence; see :mod:`.epochs`. A message handed out at epoch e leaves e + 1 in
its row. Whatever becomes of it then, the epoch never has that value again, and whoever still holds
the earlier lease may only ack.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    FromClause,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    delete,
    not_,
    or_,
    select,
)

from .. import clock
from ..clock import to_nanoseconds
from ..table.layouts import DEAD
from ..table.options import queue_options
from ..table.unique import NEXT_DUE, UNSTREAMED
from .backoff import backoff, random_jitter
from .epochs import after_move, after_release, after_requeue, attempts, has_attempts
from .failures import FAILED_EPOCH, are_kept, failed_epoch
from .queries import (
    assign,
    has_index,
    id_condition,
    shard_conditions,
    unindexed,
    update_by_id,
    update_by_key,
    version_condition,
)

__all__ = [
    "DEAD",
    "ack",
    "cancel",
    "conditions",
    "delete_dead",
    "due_since",
    "extend",
    "fail",
    "find_ids",
    "first_due_time",
    "is_dead",
    "is_held",
    "is_leased",
    "is_movable",
    "is_ready",
    "is_replaceable",
    "is_scheduled",
    "is_still_dead",
    "is_unsettled",
    "lease",
    "lease_parameters",
    "lock_held",
    "move",
    "release",
    "requeue",
    "retry",
    "revoke",
]


def first_due_time(*, due: bool) -> int:
    """Return the ``time_next`` of rows that become messages: ready at once, or dead."""
    return 0 if due else DEAD


def is_unsettled(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message isn't acked."""
    return rows.c.time_acked.is_(None)


def due_since(table: Table) -> ColumnElement[bool]:
    """Return the condition that an unacked message has been due for ``_due_for`` nanoseconds."""
    return table.c.time_next < clock.database_now() - bindparam("_due_for", type_=BigInteger)


def is_ready(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message is due."""
    return rows.c.time_next <= clock.database_now()


def is_scheduled(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message is not due yet, and was never handed out."""
    scheduled = and_(_is_later(rows), not_(has_attempts(rows.c.epoch)))
    return and_(scheduled, not_(is_held(rows))) if is_replaceable(rows) else scheduled


def is_leased(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message was handed out, or waits for its retry."""
    attempted = has_attempts(rows.c.epoch)
    return and_(
        _is_later(rows), or_(is_held(rows), attempted) if is_replaceable(rows) else attempted
    )


def is_replaceable(rows: FromClause) -> bool:
    """Return whether payloads of a queue's messages can be replaced.

    :param rows: the queue's table, or an alias of it.
    """
    column = rows.c.get(NEXT_DUE)
    return column is not None and any(UNSTREAMED in base.info for base in column.base_columns)


def is_held(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message is leased, where payloads can be replaced.

    One that waits for its retry, or for its time after a replacement, has ``next_due`` equal to
    ``time_next``.
    """
    columns = rows.c
    leased = case(
        (columns[NEXT_DUE].is_(None), has_attempts(columns.epoch)),
        else_=columns[NEXT_DUE] != columns.time_next,
    )
    return and_(columns.time_next > clock.database_now(), leased)


def is_dead(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message has failed for good."""
    return rows.c.time_next == DEAD


def is_still_dead(rows: FromClause) -> ColumnElement[bool]:
    """Return :func:`is_dead` for rows that are found by their ``id``.

    Another transaction may have requeued what a SELECT has found dead.
    """
    return unindexed(rows.c.time_next) == DEAD


def is_movable(rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message is ready, scheduled or retrying: that nobody has it."""
    due, attempted = unindexed(rows.c.time_next), attempts(rows.c.epoch) > 0
    failed = failed_epoch(rows)
    held = attempted if failed is None else and_(attempted, _is_another(failed, rows))
    if is_replaceable(rows):
        held = is_held(rows)
    return and_(due < DEAD, or_(due <= clock.database_now(), not_(held)))


def conditions(table: Table, rows: FromClause) -> dict[str, ColumnElement[bool]]:
    """Return the condition of each state, by the name that users know; one is true of each row.

    :param table: the queue's table.
    :param rows: the table, or an alias of it.
    """
    leased = is_leased(rows)
    found = {
        "ready": is_ready(rows),
        "scheduled": is_scheduled(rows),
        "leased": leased,
        "dead": is_dead(rows),
    }
    if (failed := failed_epoch(rows)) is not None:
        found["leased"] = and_(leased, _is_another(failed, rows))
        found["retrying"] = and_(leased, failed == rows.c.epoch)
    if not has_index(table, "next_idx"):  # By poller_idx then, which begins with time_acked.
        found = {name: and_(is_unsettled(rows), condition) for name, condition in found.items()}
    # The first of its conditions is for poller_idx, the second for next_idx.
    return found | {"acked": and_(rows.c.time_acked.is_not(None), rows.c.time_next.is_(None))}


def _is_another(failed: ColumnElement[int], rows: FromClause) -> ColumnElement[bool]:
    """Return the condition that a message was handed out since its last failure, if it had one."""
    return or_(failed.is_(None), failed != rows.c.epoch)


def _is_later(rows: FromClause) -> ColumnElement[bool]:
    return and_(rows.c.time_next > clock.database_now(), rows.c.time_next < DEAD)


@lru_cache(maxsize=256)
def lease(table: Table) -> Update:
    """Return the UPDATE that hands out rows, as Vitess does after sending them.

    Its parameters are those of :func:`lease_parameters`.
    """
    end = _end_of_lease(table, table.c.epoch)
    return assign(update_by_id(table), time_next=end, epoch=table.c.epoch + 1)


def lease_parameters(ids: Sequence[int], since: int) -> dict[str, Any]:
    """Return the parameters of one execution of :func:`lease`.

    :param since: when the leases begin, as the database has told.
    """
    return {"_ids": ids, "_since": since, "_jitter": random_jitter()}


@lru_cache(maxsize=256)
def revoke(table: Table) -> Update:
    """Return the UPDATE that undoes :func:`lease`, where that has committed.

    The end of the lease shows it: with the same parameters, it is the same nanosecond.
    """
    end = _end_of_lease(table, table.c.epoch - 1)
    leased = update_by_id(table).where(
        unindexed(table.c.time_acked).is_(None), unindexed(table.c.time_next) == end
    )
    return assign(leased, time_next=clock.database_now(), epoch=after_release(table.c.epoch))


def _end_of_lease(table: Table, epoch: ColumnElement[int]) -> ColumnElement[int]:
    options = queue_options(table)
    since, jitter = (bindparam(name, type_=BigInteger) for name in ("_since", "_jitter"))
    return since + (backoff(attempts(epoch), options, jitter) + to_nanoseconds(options.ack_wait))


@lru_cache(maxsize=256)
def release(table: Table) -> Update:
    """Return the UPDATE that makes the held rows of ``_ids`` ready again, which nobody has seen.

    It takes the attempt back. Repeated, it changes nothing, because the fence is gone.
    """
    held = _held(table, one=False, leased=False)
    return assign(held, time_next=clock.database_now(), epoch=after_release(table.c.epoch))


@lru_cache(maxsize=256)
def ack(table: Table, *, one: bool) -> Update:
    """Return the UPDATE that acks rows nobody has acked; its parameter is ``time_acked``.

    :param one: whether it is for one row, by its key, or for many, by their ``id``.
    """
    unacked = _update(table, one=one).where(unindexed(table.c.time_acked).is_(None))
    return assign(unacked, time_acked=bindparam("time_acked"), time_next=None)


def fail(table: Table, *, one: bool, leased: bool, **values: Any) -> Update:
    """Return the UPDATE that makes held rows dead.

    :param one: as in :func:`ack`.
    :param leased: whether the rows were received, and not only queried.
    :param values: of other columns.
    """
    return assign(_held(table, one=one, leased=leased), time_next=DEAD, **values)


def retry(table: Table, *, one: bool, leased: bool, delay: int | None, **values: Any) -> Update:
    """Return the UPDATE that makes held rows ready later; see :func:`fail`.

    :param delay: nanoseconds from now; None for the queue's own backoff.
    :param values: of other columns.
    """
    wait: Any = delay
    if delay is None:
        wait = backoff(attempts(table.c.epoch) - 1, queue_options(table), random_jitter())
    due = clock.database_now() + wait
    if is_replaceable(table):
        values[NEXT_DUE] = due  # It waits; see is_held.
    return assign(_held(table, one=one, leased=leased), time_next=due, **values)


def extend(table: Table, *, one: bool, leased: bool, length: int) -> Update:
    """Return the UPDATE by which the leases of held rows end later; see :func:`fail`.

    :param length: nanoseconds from now.
    """
    held = _held(table, one=one, leased=leased)
    return assign(held, time_next=clock.database_now() + length)


@lru_cache(maxsize=256)
def delete_dead(table: Table) -> Delete:
    """Return the DELETE of the dead ones of the rows ``_ids``."""
    return delete(table).where(id_condition(table), is_still_dead(table))


@lru_cache(maxsize=256)
def requeue(table: Table) -> Update:
    """Return the UPDATE that makes the dead ones of the rows ``_ids`` ready, as if new."""
    dead = update_by_id(table).where(is_still_dead(table))
    return assign(dead, time_next=clock.database_now(), epoch=after_requeue(table.c.epoch))


def move(table: Table, due: ColumnElement[int] | int) -> Update:
    """Return the UPDATE by which those of the rows ``_ids`` that nobody has are due at a time.

    :param due: nanoseconds since 1970.
    """
    moved = update_by_id(table).where(
        *shard_conditions(table), unindexed(table.c.time_acked).is_(None), is_movable(table)
    )
    epoch = after_move(table.c.epoch)
    values: dict[str, Any] = {"time_next": due}
    if is_replaceable(table):
        values[NEXT_DUE] = due
    if are_kept(table):
        # Else one that was handed out before would look as if somebody had it now. MySQL, which
        # assigns from left to right, has to do this before the epoch changes.
        values[FAILED_EPOCH] = epoch
    return assign(moved, **values, epoch=epoch)


@lru_cache(maxsize=256)
def cancel(table: Table) -> Delete:
    """Return the DELETE of those of the rows ``_ids`` that nobody has acked."""
    return delete(table).where(
        id_condition(table), *shard_conditions(table), unindexed(table.c.time_acked).is_(None)
    )


@lru_cache(maxsize=256)
def lock_held(table: Table) -> Select[Any]:
    """Return the SELECT that locks the rows of ``_ids`` that no other transaction has locked."""
    return find_ids(table).with_for_update(skip_locked=True)


@lru_cache(maxsize=256)
def find_ids(table: Table) -> Select[Any]:
    """Return the SELECT that finds which of ``_ids`` have a row."""
    return select(table.c.id).where(id_condition(table), *shard_conditions(table))


@lru_cache(maxsize=256)
def _held(table: Table, *, one: bool, leased: bool) -> Update:
    """Return an UPDATE of the rows that are at epoch ``_fence``, and neither acked nor dead.

    Received ones must not be due either: Vitess may have sent such a row again, and will postpone
    it.
    """
    due = unindexed(table.c.time_next)
    held = _update(table, one=one).where(
        unindexed(table.c.time_acked).is_(None), table.c.epoch == bindparam("_fence"), due < DEAD
    )
    return held.where(due > clock.database_now()) if leased else held


def _update(table: Table, *, one: bool) -> Update:
    if one:
        return update_by_key(table)
    update = update_by_id(table).where(*shard_conditions(table))
    return update.where(version_condition(table)) if is_replaceable(table) else update
