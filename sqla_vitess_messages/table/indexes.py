"""The indexes and columns of a queue: those of its layout, and those that its options add."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column

from .layouts import LAYOUTS, IndexSpec, make_columns
from .options import QueueOptions
from .order import ORDER_COLUMNS, make_order_columns, order_index
from .unique import UNIQUE_COLUMNS, make_unique_columns, unique_index

__all__ = ["index_specs", "make_own_columns", "own_columns"]


def index_specs(options: QueueOptions) -> tuple[IndexSpec, ...]:
    """Return the indexes of a queue with these options."""
    specs = LAYOUTS[options.layout].indexes
    if options.unique_by is not None:
        specs += (unique_index(options.unique_by),)
    if options.ordered_by is not None:
        specs += (order_index(options.ordered_by),)
    return specs


def own_columns(options: QueueOptions) -> tuple[str, ...]:
    """Return the names of the columns that a queue with these options has besides its payload."""
    columns = LAYOUTS[options.layout].columns
    if options.unique_by is not None:
        columns += UNIQUE_COLUMNS
    if options.ordered_by is not None:
        columns += ORDER_COLUMNS
    return columns


def make_own_columns(options: QueueOptions) -> list[Column[Any]]:
    """Return the columns of :func:`own_columns`, for a Table without a model."""
    columns = make_columns(options.layout)
    if options.unique_by is not None:
        columns += make_unique_columns()
    if options.ordered_by is not None:
        columns += make_order_columns(halt_on_dead=options.halt_on_dead)
    return columns
