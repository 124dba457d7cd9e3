"""The place of a message among those of its key: nanoseconds that grow strictly in each process.

An instance gets its place when it is flushed, in the order in which it was added to its session:
neither when it is made, nor in the order in which a flush happens to insert.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Table, case, select
from sqlalchemy.orm import InstanceState
from sqlalchemy.orm.attributes import instance_state

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType
from ..forking import forget_in_child
from ..shown import shown
from ..table.order import SEQ
from . import states
from .message import Message
from .queries import assign, chunks, id_condition, update_by_id

__all__ = ["check_place", "next_place", "place_last", "place_pending"]

MAX_PLACE = 2**63 - 1


class _Places:
    """The last place that was given, and a lock for it."""

    def __init__(self) -> None:
        self._last = 0
        self.forget_parent()

    def forget_parent(self) -> None:
        """Have a lock of its own, in a process that was forked."""
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(clock.now(), self._last + 1)
            return self._last


_places = _Places()
forget_in_child(_places)


def next_place() -> int:
    """Return a place that comes after every one that this process has given before."""
    return _places.next()


def place_pending(state: InstanceState[Message]) -> None:
    """Give places to the message that is being flushed, and to those of its table that will be.

    :raises InvalidArgument: for a place that can't be.
    """
    values, model = state.dict, state.class_
    if values.get(SEQ) is None:
        for other in _pending_messages(state):
            if other.dict.get(SEQ) is None:
                other.dict[SEQ] = next_place()
    check_place(values[SEQ], model)


def check_place(place: object, model: type[Message]) -> None:
    """Check the place of a message.

    :raises InvalidArgument: for one that can't be.
    :raises InvalidArgumentType: for one that is no int.
    """
    if type(place) is not int:
        raise InvalidArgumentType(f"{model.__name__}.seq={shown(place)}: expected an int")
    if not 0 <= place <= MAX_PLACE:
        raise InvalidArgument(f"{model.__name__}.seq={place}: expected from 0 to {MAX_PLACE}")


def _pending_messages(state: InstanceState[Message]) -> list[InstanceState[Message]]:
    """Return the pending messages of the same table in a session, in the order of their addition.

    The flush itself may insert them in another order, if they refer to one another.
    """
    session = state.session
    pending: list[InstanceState[Message]] = [
        instance_state(one)
        for one in (() if session is None else session.new)
        if type(one) is state.class_
    ]
    return sorted(pending, key=attrgetter("insert_order")) or [state]


def place_last(
    connection: Connection, table: Table, groups: Iterable[list[int]]
) -> list[list[int]]:
    """Give dead messages places after all the others of their keys, in their old order.

    The others went on without them. Requeued at its old place, one would be handed out while a
    later one is being handled.

    :param groups: the ids of messages, in lists that fit into one statement.
    :return: the ids of those that are dead, in such lists.
    """
    columns: Any = table.c
    finding = select(columns[SEQ], columns.id).where(id_condition(table), states.is_dead(table))
    dead = sorted(
        (place, id_) for ids in groups for place, id_ in connection.execute(finding, {"_ids": ids})
    )
    placed = list(chunks(id_ for _place, id_ in dead))
    for chunk in placed:
        places = {id_: next_place() for id_ in chunk}
        moving = update_by_id(table).where(states.is_still_dead(table))
        connection.execute(assign(moving, **{SEQ: case(places, value=columns.id)}), {"_ids": chunk})
    return placed
