"""What a process that was forked has to forget: it has its parent's objects, but no thread of it.

Locks that a thread of the parent held would never be free in the child, and connections belong to
the parent: whatever the child sent on them, the parent would have sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

__all__ = ["Inherited", "call_in_child", "forget_in_child", "keep_for_ever"]


class Inherited(Protocol):
    """Something with locks, threads or connections."""

    def forget_parent(self) -> None:
        """Become usable in a child, without a lock, and without sending anything.

        Called in a process that was forked, before anything else runs in it.
        """
        ...


_inherited: WeakSet[Inherited] = WeakSet()


def forget_in_child(thing: Inherited) -> None:
    """Have :meth:`Inherited.forget_parent` called in children, as long as the object lives."""
    _inherited.add(thing)


def call_in_child(call: Callable[[], None]) -> None:
    """Have a function called in each process that is forked."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork.
        os.register_at_fork(after_in_child=call)


def keep_for_ever(thing: object) -> None:
    """Keep an object from ever being finalized, also at the end of the process."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _forget_parent() -> None:
    for thing in list(_inherited):
        thing.forget_parent()


call_in_child(_forget_parent)
