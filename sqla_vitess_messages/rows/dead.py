"""Messages that failed for good: find them, requeue them, delete them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Table, select
from sqlalchemy.orm import Session, scoped_session

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType
from ..logs import get_logger
from ..shown import shown
from ..table.options import queue_options
from ..table.order import is_ordered
from . import states
from .loading import Portions, load_separately
from .local_notify import notify_at_commit
from .message import Message, queue_table
from .places import place_last
from .queries import CHUNK, chunks
from .reasons import describe_error
from .requeue_unique import requeue_unique
from .selection import flush_and_connect, portions
from .settle import SessionOrConnection, connection_of

__all__ = ["find", "purge", "requeue"]

M = TypeVar("M", bound=Message)

log = get_logger(__name__)


def find(model: type[M], session: Session, limit: int) -> list[M]:
    """Find dead messages; see :meth:`.MessageQueueMixin.dead`."""
    if not isinstance(session, (Session, scoped_session)):
        raise InvalidArgumentType(f"session={shown(session)}: expected a Session")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InvalidArgumentType(f"limit={shown(limit)}: expected an int")
    if limit < 1:
        raise InvalidArgument(f"limit={limit}: expected at least 1")
    table = queue_table(model)
    dead = select(model).where(states.is_dead(table))
    portions = Portions()

    def load(ids: Sequence[int]) -> Sequence[M]:
        return session.scalars(dead.where(table.c.id.in_(ids))).all()

    found: list[M] = []
    # The ids come first, as a result may be too large, and vtgate then forgets a transaction that
    # has begun with it.
    for ids in _dead_ids_in_order(session, table, min(limit, CHUNK)):
        loaded, failed = load_separately(load, ids, portions)
        found += loaded
        for message_id, failure in failed:
            log.warning(
                "message %d can't be loaded: %s", message_id, describe_error(failure),
                extra={"queue": table.name, "message_id": message_id},
            )  # fmt: skip
        if len(found) >= limit:
            break
    return found[:limit]


def _dead_ids_in_order(session: Session, table: Table, at_once: int) -> Iterator[list[int]]:
    last = 0
    while True:
        some = (
            select(table.c.id)
            .where(states.is_dead(table), table.c.id > last)
            .order_by(table.c.id)
            .limit(at_once)
        )
        if not (ids := list(session.scalars(some))):
            return
        yield ids
        last = ids[-1]


def requeue(model: type[Message], session: SessionOrConnection, messages_or_where: Any) -> int:
    """Make dead messages ready again; see :meth:`.MessageQueueMixin.requeue`."""
    table, connection = queue_table(model), flush_and_connect(model, session)
    notify_at_commit(connection, table)
    if messages_or_where is None:
        messages_or_where = states.is_dead(table)
    groups: Iterable[list[int]] = (
        found["_ids"] for found in portions(model, connection, messages_or_where)
    )
    if is_ordered(table) and not queue_options(table).halt_on_dead:
        groups = place_last(connection, table, groups)
    if states.is_replaceable(table):
        return sum(requeue_unique(connection, table, ids) for ids in groups)
    statement = states.requeue(table)
    return sum(connection.execute(statement, {"_ids": ids}).rowcount for ids in groups)


def purge(
    model: type[Message], session: SessionOrConnection, older_than: float | timedelta | None
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
    dead = select(table.c.id).where(states.is_dead(table), *conditions)
    deleting = states.delete_dead(table)
    deleted = left = 0
    while len(ids := list(connection.scalars(dead.limit(left + CHUNK)))) > left:
        done = sum(connection.execute(deleting, {"_ids": some}).rowcount for some in chunks(ids))
        deleted += done
        left = len(ids) - done
    return deleted
