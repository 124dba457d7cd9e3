"""Wake the subscribers of this process when a commit in this process enqueued for them."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Protocol
from weakref import WeakSet

from sqlalchemy import FromClause

from .transactions import Commit


class Wakeable(Protocol):
    """Such as a ``threading.Event``."""

    def set(self) -> None:
        """Wake whoever waits, from any thread."""


_listeners: dict[FromClause, WeakSet[Wakeable]] = defaultdict(WeakSet)
_lock = threading.Lock()


def listen(table: FromClause, wake: Wakeable) -> None:
    """Set ``wake`` whenever messages of ``table`` were committed, as long as it lives."""
    with _lock:
        _listeners[table].add(wake)


def has_listeners(table: FromClause) -> bool:
    """Say whether anybody waits for messages of ``table``."""
    return table in _listeners and bool(_listeners[table])


def notify(table: FromClause, _commit: Commit) -> None:
    """Set the events of everybody who waits for messages of ``table``.

    A commit is on its way: who looks too early looks again a few milliseconds later.
    """
    with _lock:
        waiting = list(_listeners[table])
    for wake in waiting:
        wake.set()
