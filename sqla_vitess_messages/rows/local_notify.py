"""Notify the subscribers of this process when a commit in this process enqueued for them."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Protocol
from weakref import WeakSet

from sqlalchemy import FromClause

from .transactions import Commit

__all__ = ["Listener", "has_listeners", "listen", "notify"]


class Listener(Protocol):
    """Something that receives messages."""

    def poll_now(self) -> None:
        """Poll without waiting for the end of a pause. Called from any thread."""


_listeners: dict[FromClause, WeakSet[Listener]] = defaultdict(WeakSet)
_lock = threading.Lock()


def listen(table: FromClause, listener: Listener) -> None:
    """Notify ``listener`` whenever messages of ``table`` were committed, as long as it lives."""
    with _lock:
        _listeners[table].add(listener)


def has_listeners(table: FromClause) -> bool:
    """Return whether a subscriber of this process listens on this table."""
    return table in _listeners and bool(_listeners[table])


def notify(table: FromClause, _commit: Commit) -> None:
    """Notify every listener on ``table``.

    The commit is under way: who polls too early polls again a few milliseconds later.
    """
    with _lock:
        listeners = list(_listeners[table])
    for listener in listeners:
        listener.poll_now()
