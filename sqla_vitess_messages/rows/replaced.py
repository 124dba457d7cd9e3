"""Messages whose payload was replaced while somebody held them; see :mod:`.upsert`.

A settlement is for the payload that was delivered, which the row's ``revision`` identifies. It
finds no row to settle once another payload has taken its place. Then, if the lease holds, the row
goes on as a new message: ready at the time of the replacement, without any attempt. So a plain
settlement costs no further statement, and a late one can't settle what it has not seen.

A replacement gives the row the first epoch of the next generation. The row keeps it until the new
payload is delivered, which is by when the holder of the old one must have settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table, Update, bindparam, case, func, not_, or_, tuple_

from .. import clock
from ..table.layouts import DEAD
from ..table.unique import NEXT_DUE, REVISION
from .epochs import GENERATION, MAX_ATTEMPTS, after_replacement, attempts
from .lease import Lease
from .local_notify import notify_at_commit
from .queries import (
    assign,
    batch_parameters,
    shard_conditions,
    unindexed,
    update_by_id,
    version_condition,
)
from .states import is_held, is_replaceable

__all__ = ["extend_replaced", "resume", "resume_replaced"]


def resume_replaced(
    connection: Connection, table: Table, leases: Sequence[Lease], done: int, *, held: bool = True
) -> int:
    """Make the messages of leases ready whose payload was replaced, as new ones.

    :param done: how many of them were settled.
    :param held: whether only those whose lease holds count. An ack may come later, as long as
        nobody was given the message since.
    :return: how many there were.
    """
    if done >= len(leases) or not is_replaceable(table):
        return 0
    resumed = connection.execute(resume(table, held=held), _parameters(table, leases)).rowcount
    if resumed:
        notify_at_commit(connection, table)
    return resumed


def extend_replaced(
    connection: Connection, table: Table, leases: Sequence[Lease], done: int, length: int
) -> int:
    """Extend the leases of messages whose payload was replaced.

    :param done: of how many the lease was extended.
    :param length: nanoseconds from now.
    :return: how many there were.
    """
    if done >= len(leases) or not is_replaceable(table):
        return 0
    ends, next_due = clock.database_now() + length, table.c[NEXT_DUE]
    # Not earlier than the replacement's own time, when it would be delivered without an ack.
    statement = assign(
        _replaced(table, held=True),
        time_next=case((next_due >= ends, next_due + 1), else_=ends),
    )
    return connection.execute(statement, _parameters(table, leases)).rowcount


@lru_cache(maxsize=256)
def resume(table: Table, *, held: bool) -> Update:
    """Return the UPDATE that makes rows ready whose payload was replaced; see :func:`_replaced`."""
    columns = table.c
    return assign(
        _replaced(table, held=held),
        time_next=func.coalesce(columns[NEXT_DUE], columns.time_next),
        # Once: afterwards nobody holds the payload that was replaced.
        epoch=columns.epoch + GENERATION,
    )


def _replaced(table: Table, *, held: bool) -> Update:
    """Return an UPDATE of the rows of ``_ids`` whose payload isn't that of ``_revision``.

    Others may not have got the row since: the payload was replaced during the lease, or on a stream
    before Vitess has postponed the message, which counts the attempt.
    """
    due = unindexed(table.c.time_next)
    replaced = update_by_id(table).where(
        *shard_conditions(table),
        unindexed(table.c.time_acked).is_(None),
        due < DEAD,
        not_(version_condition(table)),
        or_(
            tuple_(table.c.id, table.c.epoch).in_(bindparam("_fences", expanding=True)),
            tuple_(table.c.id, table.c.epoch, table.c[REVISION].bitwise_and(MAX_ATTEMPTS)).in_(
                bindparam("_replaced", expanding=True)
            ),
        ),
    )
    return replaced.where(is_held(table)) if held else replaced


def _parameters(table: Table, leases: Sequence[Lease]) -> dict[str, Any]:
    fences = [(lease.message_id, epoch) for lease in leases for epoch in (lease.epoch, lease.fence)]
    replaced = [
        (lease.message_id, after_replacement(lease.fence), attempts(lease.fence))
        for lease in leases
    ]
    keys = [lease.key for lease in leases]
    return batch_parameters(table, keys) | {"_fences": fences, "_replaced": replaced}
