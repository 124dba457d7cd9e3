"""Requeue dead messages of a unique queue, unless another message has their key by now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Select, Table, Update, select

from ..vitess.server import MYSQL
from . import states
from .queries import id_condition

__all__ = ["requeue_unique"]


def requeue_unique(connection: Connection, table: Table, ids: Sequence[int]) -> int:
    """Make dead messages ready, as if new, and return how many.

    Those stay dead whose key an unsettled message has; of several of one key, one comes back.
    """
    dead = list(connection.scalars(_find_dead(table).with_for_update(), {"_ids": list(ids)}))
    if not dead:
        return 0
    connection.execute(_requeue(table), {"_ids": dead})
    # The number of rows that the UPDATE has found says nothing on those that it has changed.
    return len(dead) - len(list(connection.scalars(_find_dead(table), {"_ids": dead})))


@lru_cache(maxsize=256)
def _find_dead(table: Table) -> Select[Any]:
    return select(table.c.id).where(id_condition(table), states.is_dead(table))


@lru_cache(maxsize=256)
def _requeue(table: Table) -> Update:
    """Return the UPDATE that leaves rows as they are which the unique index refuses."""
    statement = states.requeue(table).prefix_with("OR IGNORE", dialect="sqlite")
    for dialect in MYSQL:
        statement = statement.prefix_with("IGNORE", dialect=dialect)
    return statement
