"""The epoch of a message: it counts attempts, and only ever grows, so that no fence is used twice.

Its lower 16 bits are the attempts: how often the message was handed out since it was enqueued or
requeued. The rest is the generation. A delivery adds 1; Vitess does that itself on a stream. What
takes an attempt back, or all of them, goes to the next generation, in which every epoch is new.
"""

from __future__ import annotations

from typing import overload

from sqlalchemy import ColumnElement

__all__ = ["GENERATION", "MAX_ATTEMPTS", "after_release", "after_requeue", "attempts"]

GENERATION = 2**16
"""The difference between an epoch and the one with the same attempts in the next generation."""

MAX_ATTEMPTS = GENERATION - 1
"""The most attempts that an epoch can count."""


@overload
def attempts(epoch: int) -> int: ...
@overload
def attempts(epoch: ColumnElement[int]) -> ColumnElement[int]: ...
def attempts(epoch: int | ColumnElement[int]) -> int | ColumnElement[int]:
    """Return how often a message was handed out, of its epoch or its column ``epoch``."""
    return epoch % GENERATION


def after_release(epoch: ColumnElement[int]) -> ColumnElement[int]:
    """Return the epoch of a leased message that no handler has seen: without this attempt."""
    return epoch + (GENERATION - 1)


def after_requeue(epoch: ColumnElement[int]) -> ColumnElement[int]:
    """Return the epoch of a message that is as good as new: without any attempt."""
    return epoch - attempts(epoch) + GENERATION
