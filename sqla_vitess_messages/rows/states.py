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

A message that waits for its retry (:func:`retry`) looks like a leased one.

The row's epoch is the fence; see :mod:`.epochs`. A message handed out at epoch e leaves e + 1 in
its row. Whatever becomes of it then, the epoch never has that value again, and whoever still holds
the earlier lease may only ack.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Table, Update, and_, bindparam, select

from .. import clock
from ..table.options import queue_options
from .backoff import backoff, random_jitter
from .epochs import after_release, after_requeue, attempts
from .queries import (
    id_condition,
    shard_conditions,
    unindexed,
    update_by_id,
    update_by_key,
)

__all__ = [
    "DEAD",
    "ack",
    "due_since",
    "extend",
    "fail",
    "first_due_time",
    "is_dead",
    "is_leased",
    "is_ready",
    "is_scheduled",
    "is_unsettled",
    "lease",
    "lock_held",
    "release",
    "requeue",
    "retry",
    "revoke",
]

DEAD = 2**63 - 1
"""``time_next`` of a message that failed for good: it is never due."""


def first_due_time(*, due: bool) -> int:
    """Return the ``time_next`` of rows that become messages: ready at once, or dead."""
    return 0 if due else DEAD


def is_unsettled(table: Table) -> ColumnElement[bool]:
    """Return the condition that a message isn't acked."""
    return table.c.time_acked.is_(None)


def due_since(table: Table) -> ColumnElement[bool]:
    """Return the condition that an unacked message has been due for ``_due_for`` nanoseconds."""
    return table.c.time_next < clock.database_now() - bindparam("_due_for", type_=BigInteger)


def is_ready(table: Table) -> ColumnElement[bool]:
    """Return the condition that a message is due."""
    return table.c.time_next <= clock.database_now()


def is_scheduled(table: Table) -> ColumnElement[bool]:
    """Return the condition that a message is not due yet, and was never handed out."""
    return and_(_is_later(table), attempts(table.c.epoch) == 0)


def is_leased(table: Table) -> ColumnElement[bool]:
    """Return the condition that a message was handed out, or waits for its retry."""
    return and_(_is_later(table), attempts(table.c.epoch) > 0)


def is_dead(table: Table) -> ColumnElement[bool]:
    """Return the condition that a message has failed for good."""
    return table.c.time_next == DEAD


def _is_later(table: Table) -> ColumnElement[bool]:
    return and_(table.c.time_next > clock.database_now(), table.c.time_next < DEAD)


def lease(table: Table, since: int | None = None, jitter: int | None = None) -> Update:
    """Return the UPDATE that hands out the rows of ``_ids``, as Vitess does after sending them.

    :param since: when the leases begin, as the database has told. Default: now.
    :param jitter: of the backoff. Default: a random one.
    """
    begin: Any = clock.database_now() if since is None else since
    length = _lease_length(table, table.c.epoch, random_jitter() if jitter is None else jitter)
    return update_by_id(table).values(time_next=begin + length, epoch=table.c.epoch + 1)


def revoke(table: Table, since: int, jitter: int) -> Update:
    """Return the UPDATE that undoes :func:`lease` for the rows of ``_ids``, where it has committed.

    The end of the lease shows that: no other one ends in the same nanosecond.
    """
    end = since + _lease_length(table, table.c.epoch - 1, jitter)
    leased = update_by_id(table).where(
        unindexed(table.c.time_acked).is_(None), unindexed(table.c.time_next) == end
    )
    return leased.values(time_next=clock.database_now(), epoch=after_release(table.c.epoch))


def _lease_length(table: Table, epoch: ColumnElement[int], jitter: int) -> ColumnElement[int]:
    options = queue_options(table)
    return backoff(attempts(epoch), options, jitter) + clock.to_nanoseconds(options.ack_wait)


@lru_cache(maxsize=256)
def release(table: Table) -> Update:
    """Return the UPDATE that makes the held rows of ``_ids`` ready again, which nobody has seen.

    It takes the attempt back. Repeated, it changes nothing, because the fence is gone.
    """
    held = _held(table, one=False, leased=False)
    return held.values(time_next=clock.database_now(), epoch=after_release(table.c.epoch))


@lru_cache(maxsize=256)
def ack(table: Table, *, one: bool) -> Update:
    """Return the UPDATE that acks rows nobody has acked; its parameter is ``time_acked``.

    :param one: whether it is for one row, by its key, or for many, by their ``id``.
    """
    return (
        _update(table, one=one)
        .where(unindexed(table.c.time_acked).is_(None))
        .values(time_acked=bindparam("time_acked"), time_next=None)
    )


def fail(table: Table, *, one: bool, leased: bool, **values: Any) -> Update:
    """Return the UPDATE that makes held rows dead.

    :param one: as in :func:`ack`.
    :param leased: whether the rows were received, and not only queried.
    :param values: of other columns.
    """
    return _held(table, one=one, leased=leased).values(time_next=DEAD, **values)


def retry(table: Table, *, one: bool, leased: bool, delay: int | None) -> Update:
    """Return the UPDATE that makes held rows ready later; see :func:`fail`.

    :param delay: nanoseconds from now; None for the queue's own backoff.
    """
    wait: Any = delay
    if delay is None:
        wait = backoff(attempts(table.c.epoch) - 1, queue_options(table), random_jitter())
    held = _held(table, one=one, leased=leased)
    return held.values(time_next=clock.database_now() + wait)


def extend(table: Table, *, one: bool, leased: bool, length: int) -> Update:
    """Return the UPDATE by which the leases of held rows end later; see :func:`fail`.

    :param length: nanoseconds from now.
    """
    held = _held(table, one=one, leased=leased)
    return held.values(time_next=clock.database_now() + length)


@lru_cache(maxsize=256)
def requeue(table: Table) -> Update:
    """Return the UPDATE that makes the dead ones of the rows ``_ids`` ready, as if new."""
    return (
        update_by_id(table)
        .where(unindexed(table.c.time_next) == DEAD)
        .values(time_next=clock.database_now(), epoch=after_requeue(table.c.epoch))
    )


@lru_cache(maxsize=256)
def lock_held(table: Table) -> Select[Any]:
    """Return the SELECT that locks the rows of ``_ids`` that no other transaction has locked."""
    return (
        select(table.c.id)
        .where(id_condition(table), *shard_conditions(table))
        .with_for_update(skip_locked=True)
    )


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
    return update_by_key(table) if one else update_by_id(table).where(*shard_conditions(table))
