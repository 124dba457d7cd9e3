"""The columns and the index by which a queue holds one unsettled message for each key.

============= =====================================================================================
``revision``  Identifies the payload, which may be replaced: a settlement is for the one delivered.
``next_due``  When the replacement is to be delivered, while the message that it replaces is held;
              equal to ``time_next`` while the message waits, if it was replaced or retried before.
``unsettled`` A virtual generated column: 1 while the message is neither acked nor dead, else NULL.
              The unique index ends in it, so that settled messages, of which it is NULL, never
              take a key.
============= =====================================================================================

They follow the payload's columns: Vitess and the layouts require only the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Computed, Table, and_, case, column

from .keys import add_missing_columns, check_payload_key, columns_named
from .layouts import DEAD, IndexSpec, TinyInteger
from .options import OPTIONS_KEY, QueueOptions, queue_options

__all__ = [
    "NEXT_DUE",
    "REVISION",
    "UNIQUE_COLUMNS",
    "UNIQUE_INDEX",
    "UNMAPPED",
    "UNSETTLED",
    "UNSTREAMED",
    "add_unique_columns",
    "check_unique_columns",
    "make_unique_columns",
    "unique_columns",
    "unique_index",
]

REVISION, NEXT_DUE, UNSETTLED = UNIQUE_COLUMNS = ("revision", "next_due", "unsettled")

UNMAPPED = (NEXT_DUE, UNSETTLED)
"""The columns that instances have no attribute for by the column's name."""

UNSTREAMED = f"{OPTIONS_KEY}.unstreamed"
"""The key in ``Column.info`` of a column that no stream has to bring."""

UNIQUE_INDEX = "unique_idx"


def unique_index(names: Sequence[str]) -> IndexSpec:
    """Return the index that holds one unsettled message for each key of these columns."""
    return IndexSpec(UNIQUE_INDEX, (*names, UNSETTLED), unique=True)


def make_unique_columns() -> list[Column[Any]]:
    """Return the columns that a queue with ``unique_by`` has besides those of its layout."""
    due = column("time_next", BigInteger)
    unsettled = and_(column("time_acked", BigInteger).is_(None), due < DEAD)
    unstreamed = {OPTIONS_KEY: True, UNSTREAMED: True}
    return [
        Column(
            REVISION,
            BigInteger,
            nullable=False,
            default=0,
            server_default="0",
            info={OPTIONS_KEY: True},
        ),
        Column(NEXT_DUE, BigInteger, nullable=True, info=unstreamed),
        Column(
            UNSETTLED,
            TinyInteger,
            Computed(case((unsettled, 1)), persisted=False),
            nullable=True,
            info=unstreamed,
        ),
    ]


def unique_columns(table: Table) -> list[Column[Any]]:
    """Return the columns of a queue's key."""
    return columns_named(table, queue_options(table).unique_by)


def add_unique_columns(table: Table, options: QueueOptions) -> None:
    """Add the columns that ``unique_by`` needs."""
    if options.unique_by is not None:
        add_missing_columns(table, make_unique_columns())


def check_unique_columns(table: Table, options: QueueOptions) -> None:
    """Check that the columns of ``unique_by`` can be a key.

    :raises InvalidQueue: for one that doesn't exist, belongs to the queue, or may be NULL, and for
        a payload column whose name the queue needs.
    """
    if options.unique_by is not None:
        check_payload_key(
            table, "unique_by", options.unique_by, options.layout, UNIQUE_COLUMNS,
            if_null="a unique index allows any number of NULLs",
        )  # fmt: skip
