"""Change messages that wait: cancel them, or have them delivered at another time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection

from .. import clock
from ..errors import InvalidArgument
from ..shown import shown
from . import states
from .lease import Lease, lease_of
from .local_notify import notify_at_commit
from .message import Message, queue_table
from .selection import flush_and_connect, portions
from .settle import SessionOrConnection, note_settling

__all__ = ["cancel", "reschedule", "run_now"]


def cancel(model: type[Message], session: SessionOrConnection, messages_or_where: Any) -> int:
    """Delete messages that nobody has acked; see :meth:`.ChangeableQueue.cancel`.

    Those that the session's transaction works on are settled by this, if all of them are deleted.
    """
    connection, table = flush_and_connect(model, session), queue_table(model)
    if isinstance(messages_or_where, Iterator):
        messages_or_where = list(messages_or_where)
    leases = _leases(model, session, messages_or_where)

    def delete(parameters: dict[str, Any], ids: list[int]) -> int:
        return connection.execute(states.cancel(table), parameters | {"_ids": ids}).rowcount

    done = 0
    for parameters in portions(model, connection, messages_or_where):
        own = [id_ for id_ in parameters["_ids"] if id_ in leases]
        others = [id_ for id_ in parameters["_ids"] if id_ not in leases]
        if others:
            done += delete(parameters, others)
        if own:
            deleted = delete(parameters, own)
            done += deleted
            if deleted == len(own):
                note_settling(connection, table, "ack", [leases[id_] for id_ in own])
    return done


def _leases(
    model: type[Message], session: SessionOrConnection, messages_or_where: Any
) -> dict[int, Lease]:
    """Return the leases of the messages that are given, and of those in a session, by their ids."""
    given = messages_or_where if isinstance(messages_or_where, Iterable) else ()
    in_session = () if isinstance(session, Connection) else session
    messages = (one for one in (*given, *in_session) if isinstance(one, model))
    leases = (lease_of(message) for message in messages)
    return {lease.message_id: lease for lease in leases if lease is not None}


def reschedule(
    model: type[Message],
    session: SessionOrConnection,
    messages_or_where: Any,
    deliver_at: datetime | None,
    deliver_in: float | timedelta | None,
) -> int:
    """Have messages delivered at another time; see :meth:`.ChangeableQueue.reschedule`."""
    due = _due_time(deliver_at, deliver_in)
    return _execute(model, session, messages_or_where, states.move(queue_table(model), due))


def run_now(model: type[Message], session: SessionOrConnection, messages_or_where: Any) -> int:
    """Have messages delivered at once; see :meth:`.ChangeableQueue.run_now`."""
    moving = states.move(queue_table(model), clock.database_now())
    return _execute(model, session, messages_or_where, moving)


def _execute(
    model: type[Message], session: SessionOrConnection, messages_or_where: Any, statement: Any
) -> int:
    """Execute a statement for a portion of the rows at a time, and return how many it changed."""
    connection = flush_and_connect(model, session)
    notify_at_commit(connection, queue_table(model))
    return sum(
        connection.execute(statement, parameters).rowcount
        for parameters in portions(model, connection, messages_or_where)
    )


def _due_time(
    deliver_at: datetime | None, deliver_in: float | timedelta | None
) -> ColumnElement[int] | int:
    """Return when messages are to be delivered, in nanoseconds.

    :raises InvalidArgument: unless one of the two is given.
    """
    if (deliver_at is None) == (deliver_in is None):
        raise InvalidArgument(
            f"deliver_at={shown(deliver_at)} and deliver_in={shown(deliver_in)}: give one of the "
            "two; run_now() is for at once"
        )
    if deliver_at is not None:
        return clock.from_datetime(deliver_at, "deliver_at")
    assert deliver_in is not None
    delay = clock.to_nanoseconds(clock.to_seconds(deliver_in, "deliver_in"))
    return clock.database_now() + delay
