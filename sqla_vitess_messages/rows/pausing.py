"""Pause a queue: nobody gets messages of it, in any process, until it is resumed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Select, Table, delete, insert, select

from .. import clock
from ..errors import InvalidArgument
from ..table.options import queue_options
from ..table.pauses import pause_table
from ..vitess.server import MYSQL
from .message import Message, queue_table
from .settle import SessionOrConnection, connection_of

__all__ = ["find_pause", "is_paused", "pause", "resume"]


def pause(model: type[Message], session: SessionOrConnection) -> None:
    """Pause a queue; see :meth:`.ChangeableQueue.pause`."""
    queue, pauses = _tables(model)
    # It may be paused already.
    pausing = insert(pauses).prefix_with("OR IGNORE", dialect="sqlite")
    for dialect in MYSQL:
        pausing = pausing.prefix_with("IGNORE", dialect=dialect)
    values = {"queue": queue.name, "time_paused": clock.now()}
    connection_of(model, session).execute(pausing, values)


def resume(model: type[Message], session: SessionOrConnection) -> None:
    """Resume a queue; see :meth:`.ChangeableQueue.resume`."""
    queue, pauses = _tables(model)
    resuming = delete(pauses).where(pauses.c.queue == queue.name)
    connection_of(model, session).execute(resuming)


def is_paused(model: type[Message], session: SessionOrConnection) -> bool:
    """Return whether a queue is paused; see :meth:`.ChangeableQueue.is_paused`."""
    _tables(model)
    finding = find_pause(queue_table(model))
    return connection_of(model, session).scalar(finding) is not None


@lru_cache(maxsize=256)
def find_pause(queue: Table) -> Select[Any]:
    """Return the SELECT that finds the row of a paused queue."""
    pauses = pause_table(queue)
    return select(pauses.c.queue).where(pauses.c.queue == queue.name)


def _tables(model: type[Message]) -> tuple[Table, Table]:
    """Return the table of a queue that can be paused, and that of the pauses.

    :raises InvalidArgument: when it can't be.
    """
    queue = queue_table(model)
    if not queue_options(queue).pausable:
        raise InvalidArgument(
            f"{model.__name__} can't be paused: set pausable=True in its QueueOptions, and create "
            "the table for it by create_all(engine) or a migration"
        )
    return queue, pause_table(queue)
