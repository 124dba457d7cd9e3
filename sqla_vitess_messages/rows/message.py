"""The part of a message's class that the lower layers use, below the mixin that defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import FromClause, Table
from sqlalchemy.orm import InstanceState, Mapped
from sqlalchemy.orm.attributes import instance_state

__all__ = ["Message", "is_enqueued", "queue_table"]


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
