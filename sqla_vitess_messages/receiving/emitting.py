"""Call a subscriber's ``on_event``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import ref

from ..events import Event
from ..logs import get_logger

__all__ = ["Emitting", "EventEmitter"]

log = get_logger(__name__)


class Emitting(Protocol):
    """A subscriber."""

    _on_event: Callable[[Event], object] | None


class EventEmitter:
    """Calls a subscriber's ``on_event`` as long as the subscriber lives.

    What receives messages must not keep it alive, and so not ``on_event``, which may be a method of
    the object that holds the subscriber.

    :param queue: the table's name.
    """

    def __init__(self, subscriber: Emitting, queue: str) -> None:
        self._subscriber = ref(subscriber)
        self._queue = queue
        self.is_needed = subscriber._on_event is not None

    def silence(self) -> None:
        """Emit nothing more: the subscriber has been closed, and may be open again."""
        self.is_needed = False

    def emit(
        self, events: Iterable[Event], is_cancellation: Callable[[BaseException], bool]
    ) -> None:
        """Call ``on_event`` with each event. Call this without holding a lock.

        :param is_cancellation: returns whether an error means that the running task is to end.
        """
        subscriber = self._subscriber()
        if subscriber is None or subscriber._on_event is None:
            return
        for event in events:
            try:
                subscriber._on_event(event)
            except BaseException as error:  # User code may raise anything.
                if is_cancellation(error):
                    raise
                log.exception("on_event failed", extra={"queue": self._queue})
