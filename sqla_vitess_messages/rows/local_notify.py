"""Notify the subscribers of this process when a commit in this process enqueued for them."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import FromClause

from .transactions import Commit, call_guarded

__all__ = ["Listener", "has_listeners", "listen", "notify", "stop_listening"]


class Listener(Protocol):
    """Something that receives messages."""

    def poll_now(self) -> None:
        """Poll without waiting for the end of a pause. Called from any thread."""


_listeners: WeakKeyDictionary[FromClause, WeakSet[Listener]] = WeakKeyDictionary()
_lock = threading.Lock()


def listen(table: FromClause, listener: Listener) -> None:
    """Notify ``listener`` whenever messages of ``table`` were committed, as long as it lives."""
    with _lock:
        _listeners.setdefault(table, WeakSet()).add(listener)


def stop_listening(table: FromClause, listener: Listener) -> None:
    """Notify ``listener`` no more."""
    with _lock:
        _listeners.get(table, WeakSet()).discard(listener)


def has_listeners(table: FromClause) -> bool:
    """Return whether a subscriber of this process listens on this table."""
    return bool(_listeners.get(table))


def notify(table: FromClause, _commit: Commit) -> None:
    """Notify every listener on ``table``.

    The commit is under way: who polls too early polls again a few milliseconds later.
    """
    with _lock:
        listeners = list(_listeners.get(table, ()))
    for listener in listeners:
        call_guarded(listener.poll_now)
