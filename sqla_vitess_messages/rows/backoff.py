"""How long a message stays away after a delivery: Vitess's formula, as a SQL expression."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, case, cast, literal

from ..clock import to_nanoseconds
from ..table.options import QueueOptions

__all__ = ["backoff", "longest_backoff", "random_jitter"]

MAX_BITS = 62
"""Bits of a backoff in nanoseconds: doubling ends before a time overflows, as it does in Vitess."""

JITTER = 1 / 3
"""A backoff is up to a third shorter or longer."""


def random_jitter() -> int:
    """Return a random jitter of a backoff, in percent of it.

    A whole number: MySQL before 8.0.17 can't cast to a float, which is how vtgate passes one on.
    """
    return round(random.uniform(1 - JITTER, 1 + JITTER) * 100)


def backoff(
    attempts: ColumnElement[int], options: QueueOptions, jitter: int | ColumnElement[int]
) -> ColumnElement[Any]:
    """Return min_backoff · 2^attempts ± a third in ns, within min_backoff and max_backoff.

    Source: ``buildPostponeQuery`` in ``go/vt/vttablet/tabletserver/messager/message_manager.go``.
    Vitess shifts by the whole epoch. So on a stream it is the attempts that count in the first
    generation; in later ones, every bit is shifted out, and Vitess takes min_backoff.

    :param attempts: how often the message was handed out before.
    :param jitter: as of :func:`random_jitter`.
    """
    least = to_nanoseconds(options.first_backoff)
    most_doublings = _most_doublings(options)
    doublings = case((attempts > most_doublings, most_doublings), (attempts < 0, 0), else_=attempts)
    wanted = (literal(least // 100, BigInteger) * jitter).bitwise_lshift(doublings)
    limits = [(wanted < least, literal(least, BigInteger))]
    if options.max_backoff is not None:
        most = to_nanoseconds(options.max_backoff)
        limits.append((wanted > most, literal(most, BigInteger)))
    return case(*limits, else_=cast(wanted, BigInteger))


def longest_backoff(attempts: int, options: QueueOptions) -> float:
    """Return the longest that :func:`backoff`, or Vitess's own, can come to, in seconds."""
    longest = options.first_backoff * (1 + JITTER) * 2.0 ** min(attempts, _most_doublings(options))
    return longest if options.max_backoff is None else min(longest, options.max_backoff)


def _most_doublings(options: QueueOptions) -> int:
    # The jitter may take one bit more.
    return max(MAX_BITS - 1 - to_nanoseconds(options.first_backoff).bit_length(), 0)
