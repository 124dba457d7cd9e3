"""Notify the subscribers of this process when a commit in this process enqueued for them."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, FromClause

from ..forking import forget_in_child
from .transactions import Commit, call_at_commit, call_guarded

__all__ = ["Listener", "listen", "notify_at_commit", "stop_listening"]


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


def notify_at_commit(connection: Connection, table: FromClause) -> None:
    """Notify every listener on ``table`` when a connection's transaction commits.

    The commit is under way then: who polls too early polls again a few milliseconds later.
    """
    if _listeners.of.get(table):
        call_at_commit(connection, _notify, table)


def _notify(table: FromClause, _commit: Commit) -> None:
    with _listeners.lock:
        listeners = list(_listeners.of.get(table, ()))
    for listener in listeners:
        call_guarded(listener.poll_now)
