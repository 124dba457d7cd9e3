"""Keeps the leases of messages that handlers work on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic

from .base_subscriber import M
from .errors import LeaseLost
from .subscriber import Subscriber

__all__ = ["Heartbeat", "Watchlist"]

log = logging.getLogger(__name__)

STOP_WITHIN = 1.0
"""Seconds that :meth:`Heartbeat.stop` waits for a server that doesn't answer."""


class Watchlist(Generic[M]):
    """Knows which messages are worked on, and which of them lost their lease."""

    def __init__(self) -> None:
        # By id(message): a message that comes back may be here twice.
        self._watched: dict[int, M] = {}
        self._paused: set[int] = set()
        self._lost: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def watch(self, messages: Sequence[M]) -> Iterator[None]:
        """Keep the leases of messages for the length of a block."""
        with self._lock:
            self._watched.update((id(message), message) for message in messages)
        try:
            yield
        finally:
            with self._lock:
                for message in messages:
                    del self._watched[id(message)]
                    self._lost.discard(id(message))
                    self._paused.discard(id(message))

    def pause(self, messages: Sequence[M]) -> None:
        """Extend these leases no more, because their settlement follows.

        :raises LeaseLost: when any of them was lost.
        """
        with self._lock:
            self._paused.update(map(id, messages))
            lost = [message.id for message in messages if id(message) in self._lost]
        if lost:
            raise LeaseLost(f"the lease of {lost} was lost while the handler ran")

    def resume(self, messages: Sequence[M]) -> None:
        """Extend these leases again, because their settlement was rolled back."""
        with self._lock:
            self._paused.difference_update(map(id, messages))

    def to_extend(self) -> list[M]:
        """Return the messages whose leases are to be extended now."""
        with self._lock:
            left_alone = self._paused | self._lost
            return [m for key, m in self._watched.items() if key not in left_alone]

    def note_lost(self, messages: Sequence[M]) -> None:
        """Note that others may have these messages."""
        with self._lock:
            self._lost |= set(map(id, messages)) & self._watched.keys()


class Heartbeat(Watchlist[M]):
    """Extends the leases of watched messages by ``ack_wait``, three times in that time.

    :param subscriber: whose messages.
    :param ack_wait: seconds.
    """

    def __init__(self, subscriber: Subscriber[M], ack_wait: float) -> None:
        super().__init__()
        self._subscriber = subscriber
        self._ack_wait = ack_wait
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Let the leases run out."""
        self._stopped.set()
        self._thread.join(STOP_WITHIN)

    def _run(self) -> None:
        while not self._stopped.wait(self._ack_wait / 3):
            if watched := self.to_extend():
                try:
                    self.note_lost(self._subscriber.extend(watched, self._ack_wait))
                except Exception as error:  # noqa: BLE001  # The next beat may succeed.
                    log.warning("leases could not be extended: %s", error)
