"""Notify the subscribers of this process when a commit in this process enqueued for them."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import FromClause

from ..forking import forget_in_child
from .transactions import Commit, call_guarded

__all__ = ["Listener", "has_listeners", "listen", "notify", "stop_listening"]


class Listener(Protocol):
    """Something that receives messages."""

    def poll_now(self) -> None:
        """Poll without waiting for the end of a pause. Called from any thread."""


class _Listeners:
    """Who listens in this process, and a lock for it."""

    def __init__(self) -> None:
        self.forget_parent()

    def forget_parent(self) -> None:
        """Forget the subscribers of the parent, in a process that was forked, and its lock."""
        self.lock = threading.Lock()
        self.of: WeakKeyDictionary[FromClause, WeakSet[Listener]] = WeakKeyDictionary()


_listeners = _Listeners()
forget_in_child(_listeners)


def listen(table: FromClause, listener: Listener) -> None:
    """Notify ``listener`` whenever messages of ``table`` were committed, as long as it lives."""
    with _listeners.lock:
        _listeners.of.setdefault(table, WeakSet()).add(listener)


def stop_listening(table: FromClause, listener: Listener) -> None:
    """Notify ``listener`` no more."""
    with _listeners.lock:
        _listeners.of.get(table, WeakSet()).discard(listener)


def has_listeners(table: FromClause) -> bool:
    """Return whether a subscriber of this process listens on this table."""
    return bool(_listeners.of.get(table))


def notify(table: FromClause, _commit: Commit) -> None:
    """Notify every listener on ``table``.

    The commit is under way: who polls too early polls again a few milliseconds later.
    """
    with _listeners.lock:
        listeners = list(_listeners.of.get(table, ()))
    for listener in listeners:
        call_guarded(listener.poll_now)
