"""The epoch of a message: it counts attempts, and only ever grows, so that no fence is used twice.

Its lower 16 bits are the attempts: how often the message was handed out since it was enqueued or
requeued. The rest is the generation. A delivery adds 1; Vitess does that itself on a stream. What
takes an attempt back, or all of them, goes to the next generation, in which every epoch is new.
"""

from __future__ import annotations

from typing import overload

from sqlalchemy import ColumnElement, case

__all__ = [
    "GENERATION",
    "MAX_ATTEMPTS",
    "after_move",
    "after_release",
    "after_replacement",
    "after_requeue",
    "attempts",
    "has_attempts",
    "next_revision",
]

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


def after_move(epoch: ColumnElement[int]) -> ColumnElement[int]:
    """Return the epoch of a message that nobody has, when it is rescheduled: with its attempts.

    The lease of one that was handed out before may be over, and must not hold again.
    """
    return case((attempts(epoch) > 0, epoch + GENERATION), else_=epoch)


def after_requeue(epoch: ColumnElement[int]) -> ColumnElement[int]:
    """Return the epoch of a message that is as good as new: without any attempt."""
    return epoch - attempts(epoch) + GENERATION


def has_attempts(epoch: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the condition that a message was handed out since it was enqueued or requeued.

    Without a percent sign, which PyMySQL's ``executemany`` doesn't unescape.
    """
    return epoch.bitwise_and(MAX_ATTEMPTS) > 0


def next_revision(revision: ColumnElement[int], epoch: ColumnElement[int]) -> ColumnElement[int]:
    """Return the revision of a message that gets another payload.

    Like an epoch, it is greater than all before. Its lower 16 bits are the attempts at the time of
    the last delivery: with the epoch, they identify the lease whose payload was replaced.
    """
    following = revision.bitwise_or(MAX_ATTEMPTS) + 1 + epoch.bitwise_and(MAX_ATTEMPTS)
    return case((has_attempts(epoch), following), else_=revision + GENERATION)


@overload
def after_replacement(epoch: int) -> int: ...
@overload
def after_replacement(epoch: ColumnElement[int]) -> ColumnElement[int]: ...
def after_replacement(epoch: int | ColumnElement[int]) -> int | ColumnElement[int]:
    """Return the epoch of a message that gets another payload: as of one that is as good as new."""
    if isinstance(epoch, int):
        return (epoch | MAX_ATTEMPTS) + 1
    return epoch.bitwise_or(MAX_ATTEMPTS) + 1
