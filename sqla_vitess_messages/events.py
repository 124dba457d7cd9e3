"""What a subscriber tells about itself while it works, for metrics and the like.

.. code-block:: python

    def count(event):
        match event:
            case Delivered(redelivered=True):
                ...

    Subscriber(Mail, url, on_event=count)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Dead",
    "Delivered",
    "Event",
    "LeaseExpired",
    "Reconnected",
    "Reconnecting",
    "Settled",
    "Settlement",
    "StreamSilent",
]

Settlement = Literal["ack", "fail", "retry"]
"""How a message was settled."""


@dataclass(frozen=True)
class Event:
    """Something happened.

    :param queue: the table's name.
    """

    queue: str


@dataclass(frozen=True)
class Delivered(Event):
    """A message was handed out.

    :param epoch: how often it was handed out before.
    """

    message_id: int
    epoch: int

    @property
    def redelivered(self) -> bool:
        """Whether it was handed out before."""
        return self.epoch > 0


@dataclass(frozen=True)
class Settled(Event):
    """A settlement has committed.

    :param seconds: since the message was handed out.
    """

    message_id: int
    epoch: int
    how: Settlement
    seconds: float


@dataclass(frozen=True)
class Dead(Event):
    """A message has failed for good: a ``fail`` has committed, or its attempts are used up."""

    message_id: int
    epoch: int


@dataclass(frozen=True)
class LeaseExpired(Event):
    """A message was handed out and not settled in time. Others may have it now."""

    message_id: int
    epoch: int


@dataclass(frozen=True)
class Reconnecting(Event):
    """The connection is lost, and the subscriber tries to get another.

    :param reason: the driver's error.
    """

    reason: str


@dataclass(frozen=True)
class Reconnected(Event):
    """Messages can be received again."""


@dataclass(frozen=True)
class StreamSilent(Event):
    """Messages are due and the stream brings none. The subscriber pulls until it does."""
