"""The events that a subscriber emits, for metrics and similar uses.

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
    "Outcome",
    "Reconnected",
    "Reconnecting",
    "Settled",
    "StreamSilent",
]

Outcome = Literal["ack", "fail", "retry"]
"""How a message was settled."""


@dataclass(frozen=True)
class Event:
    """The base of all events.

    :param queue: the table's name.
    """

    queue: str


@dataclass(frozen=True)
class Delivered(Event):
    """A message was handed out to the application.

    :param epoch: the message's epoch, which no other delivery of it has.
    :param attempts: how often the message was handed out before.
    """

    message_id: int
    epoch: int
    attempts: int

    @property
    def redelivered(self) -> bool:
        """Whether the message was handed out before."""
        return self.attempts > 0


@dataclass(frozen=True)
class Settled(Event):
    """A settlement has committed.

    :param how: by which method the message was settled.
    :param seconds: the time since the message was handed out.
    """

    message_id: int
    epoch: int
    how: Outcome
    seconds: float


@dataclass(frozen=True)
class Dead(Event):
    """A message is dead: a ``fail`` has committed, or it had no attempts left."""

    message_id: int
    epoch: int


@dataclass(frozen=True)
class LeaseExpired(Event):
    """A message was handed out and not settled in time. It may be handed out elsewhere by now."""

    message_id: int
    epoch: int


@dataclass(frozen=True)
class Reconnecting(Event):
    """The connection is lost, and the subscriber tries to reconnect.

    :param reason: the driver's error.
    """

    reason: str


@dataclass(frozen=True)
class Reconnected(Event):
    """The subscriber has reconnected."""


@dataclass(frozen=True)
class StreamSilent(Event):
    """Messages are due but the stream delivers none. The subscriber pulls until it does again."""
