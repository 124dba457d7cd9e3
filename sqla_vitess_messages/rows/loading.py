"""Load rows as instances, though some of them can't be loaded.

A row may hold what this process can't read: a member that its Enum lacks, a text that is no JSON,
a value that a TypeDecorator refuses. One such row must not keep back the others.

Nor must rows that are only too large together: Vitess refuses a result beyond a size, of 16 MB
unless its servers were started with another ``--grpc_max_message_size``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from .queries import CHUNK
from .transient import is_refused, is_transient

__all__ = ["Portions", "is_too_large", "load_separately", "may_be_a_row"]

LIMITED_FOR = 60.0
"""Seconds that portions stay small after a result was too large."""

_TOO_LARGE = (1153,)
"""MySQL's number of the error for a packet that is too large, which vtgate uses for results."""

R = TypeVar("R")
M = TypeVar("M")


def may_be_a_row(error: Exception) -> bool:
    """Return whether loading may have failed because of a row, and not of the database."""
    if not isinstance(error, DBAPIError):
        return True  # A type's own code, a driver that decodes a value, a listener to "load".
    return not (error.connection_invalidated or is_transient(error) or is_refused(error))


def is_too_large(error: BaseException | None) -> bool:
    """Return whether Vitess has refused a result, or a statement, because of its size."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    return error.orig.args[:1] == _TOO_LARGE or "message larger than max" in str(error.orig)


class Portions:
    """How many rows to load by one statement: fewer for a while after a result was too large."""

    def __init__(self) -> None:
        self._size = CHUNK
        self._limited_until = -math.inf

    @property
    def are_limited(self) -> bool:
        """Whether a result was too large lately."""
        return time.monotonic() < self._limited_until

    @property
    def size(self) -> int:
        """How many rows to load by one statement."""
        return self._size if self.are_limited else CHUNK

    def limit(self, size: int) -> None:
        """Load no more rows than these for a while."""
        self._size = size
        self._limited_until = time.monotonic() + LIMITED_FOR


def load_separately(
    load: Callable[[Sequence[R]], Sequence[M]], rows: Sequence[R], portions: Portions
) -> tuple[list[M], list[tuple[R, Exception]]]:
    """Load rows in portions; halve one that can't be loaded, to find the rows because of which.

    :param load: loads some of the rows, or fails.
    :param rows: what identifies them.
    :param portions: is limited to what fits if results are too large.
    :return: the instances, and the rows that can't be loaded, each with the error.
    :raises sqlalchemy.exc.DBAPIError: when it is the database that fails.
    """
    loaded: list[M] = []
    failed: list[tuple[R, Exception]] = []
    start, most = 0, portions.size
    size, fitting, too_large = most, 1, False
    while some := rows[start : start + size]:
        try:
            loaded += load(some)
            fitting = max(fitting, len(some))
        except Exception as error:
            if not may_be_a_row(error):
                raise
            if len(some) > 1:
                too_large = too_large or is_too_large(error)
                size = len(some) // 2
                continue
            failed.append((some[0], error))
        start += len(some)
        size = min(size * 2, most)
    if too_large:
        portions.limit(fitting)
    return loaded, failed
