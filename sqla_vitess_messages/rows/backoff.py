"""How long a message stays away after a delivery: Vitess's formula, as a SQL expression."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, case, cast, literal

from ..clock import to_nanoseconds
from ..table.options import QueueOptions

__all__ = ["backoff", "longest_backoff"]

MAX_DOUBLINGS = 16
"""Where doubling ends. Vitess goes on until the BIGINT overflows."""

JITTER = 1 / 3
"""A backoff is up to a third shorter or longer."""


def backoff(epoch: ColumnElement[int], options: QueueOptions) -> ColumnElement[Any]:
    """Return min_backoff · 2^epoch ± a third in ns, within min_backoff and max_backoff.

    Source: ``buildPostponeQuery`` in ``go/vt/vttablet/tabletserver/messager/message_manager.go``.
    """
    least = to_nanoseconds(options.first_backoff)
    jitter = random.uniform(1 - JITTER, 1 + JITTER)
    # Jitter as a whole number of percent: MySQL before 8.0.17 can't cast to a float, which is
    # how vtgate passes one on.
    doublings = case((epoch > MAX_DOUBLINGS, MAX_DOUBLINGS), else_=epoch)
    percent = round(jitter * 100)
    wanted = literal(least // 100 * percent, BigInteger).bitwise_lshift(doublings)
    limits = [(wanted < least, literal(least, BigInteger))]
    if options.max_backoff is not None:
        most = to_nanoseconds(options.max_backoff)
        limits.append((wanted > most, literal(most, BigInteger)))
    return case(*limits, else_=cast(wanted, BigInteger))


def longest_backoff(epoch: int, options: QueueOptions) -> float:
    """Return the longest that :func:`backoff` can come to, in seconds."""
    longest = options.first_backoff * (1 + JITTER) * 2.0 ** min(epoch, MAX_DOUBLINGS)
    return longest if options.max_backoff is None else min(longest, options.max_backoff)
