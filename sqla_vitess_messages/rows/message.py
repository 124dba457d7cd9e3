"""The part of a message's class that the lower layers use, below the mixin that defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sqlalchemy import FromClause, Table
from sqlalchemy.orm import InstanceState, Mapped, Mapper
from sqlalchemy.orm.attributes import instance_state

from ..table.options import queue_options
from ..table.unique import NEXT_DUE

__all__ = [
    "NEXT_DUE_ATTRIBUTE",
    "Enqueued",
    "Message",
    "enqueued_as",
    "is_enqueued",
    "map_next_due",
    "note_enqueued",
    "queue_table",
]

NEXT_DUE_ATTRIBUTE = f"_{NEXT_DUE}"
"""The attribute for the column ``next_due``, of a queue with ``unique_by``. No stream brings it."""


class Message:
    """A row of a queue, as an instance. :class:`.MessageQueueMixin` defines its columns."""

    __table__: ClassVar[FromClause]

    if TYPE_CHECKING:
        id: Mapped[int]
        epoch: Mapped[int]


def queue_table(model: type[Message]) -> Table:
    """Return the table of a queue's class."""
    table = model.__table__
    assert isinstance(table, Table)  # The mixin refuses anything else.
    return table


def is_enqueued(message: Message) -> bool:
    """Return whether the message has a row, as far as its session knows."""
    state: InstanceState[Any] = instance_state(message)
    return state.key is not None


class Enqueued(NamedTuple):
    """What became of a message that was enqueued without becoming part of a session."""

    message_id: int
    is_inserted: bool
    """Whether it has a row of its own; else it was skipped, or has replaced another one."""


_ENQUEUED = "sqla_vitess_messages.enqueued"
"""The key in ``InstanceState.info`` of what became of a message."""


def note_enqueued(message: Message, *, is_inserted: bool) -> None:
    """Note what became of a message; see :class:`Enqueued`."""
    instance_state(message).info[_ENQUEUED] = Enqueued(message.id, is_inserted)


def enqueued_as(message: Message) -> Enqueued | None:
    """Return what became of a message; None if it wasn't enqueued like this, by its present id."""
    found: Enqueued | None = instance_state(message).info.get(_ENQUEUED)
    return found if found is not None and found.message_id == message.__dict__.get("id") else None


def map_next_due(mapper: Mapper[Any]) -> None:
    """Map :data:`NEXT_DUE_ATTRIBUTE`, after all else: it is no argument of a constructor."""
    table = queue_table(mapper.class_)
    if queue_options(table).unique_by is not None:
        mapper.add_property(NEXT_DUE_ATTRIBUTE, table.c[NEXT_DUE])
