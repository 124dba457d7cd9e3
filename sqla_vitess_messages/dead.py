"""Messages that failed for good: find them, put them back, delete them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Table, delete, select
from sqlalchemy.orm import Session

from . import clock
from .ddl import queue_table
from .errors import InvalidArgument, InvalidArgumentType
from .leases import CHUNK, DEAD, Transactional, chunks, connection_of, unindexed, update_by_id

if TYPE_CHECKING:
    from .mixin import MessageQueueMixin

Q = TypeVar("Q", bound="MessageQueueMixin")


def find(model: type[Q], session: Session, limit: int) -> list[Q]:
    """Find dead messages; see :meth:`.MessageQueueMixin.dead`."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InvalidArgumentType(f"limit={limit!r}: expected an int")
    if limit < 1:
        raise InvalidArgument(f"limit={limit}: expected at least 1")
    table = queue_table(model)
    return list(session.scalars(select(model).where(table.c.time_next == DEAD).limit(limit)))


def requeue(model: type[Q], session: Transactional, messages: Iterable[Q] | None) -> int:
    """Put dead messages back; see :meth:`.MessageQueueMixin.requeue`."""
    table, connection = queue_table(model), connection_of(model, session)
    if messages is None:
        groups = _dead_ids(connection, table)
    else:
        groups = chunks([message.id for message in messages])
    statement = (
        update_by_id(table)
        .where(unindexed(table.c.time_next) == DEAD)
        .values(time_next=clock.database_now(), epoch=0)
    )
    return sum(connection.execute(statement, {"_ids": ids}).rowcount for ids in groups)


def purge(
    model: type[MessageQueueMixin],
    session: Transactional,
    older_than: float | timedelta | None,
) -> int:
    """Delete dead messages; see :meth:`.MessageQueueMixin.purge_dead`."""
    table, connection = queue_table(model), connection_of(model, session)
    conditions = []
    if older_than is not None:
        age = clock.to_nanoseconds(clock.to_seconds(older_than, "older_than"))
        if "time_created" not in table.c:
            raise InvalidArgument(
                f"older_than={older_than!r}: the minimal layout of {table.name!r} doesn't keep "
                "when a message was enqueued; leave it out"
            )
        conditions.append(table.c.time_created < clock.database_now() - age)
    deleted = 0
    for ids in _dead_ids(connection, table, *conditions):
        deleted += connection.execute(delete(table).where(table.c.id.in_(ids))).rowcount
    return deleted


def _dead_ids(connection: Connection, table: Table, *conditions: Any) -> Iterator[list[int]]:
    """Yield the ids of dead messages in chunks; the caller takes each out of their number."""
    some = select(table.c.id).where(table.c.time_next == DEAD, *conditions).limit(CHUNK)
    while ids := list(connection.scalars(some)):
        yield ids
