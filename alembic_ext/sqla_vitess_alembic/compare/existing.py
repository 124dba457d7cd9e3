"""Read a queue from the table that the database has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import Table

from sqla_vitess_messages import InvalidQueue, QueueOptions
from sqla_vitess_messages.table.layouts import LAYOUTS
from sqla_vitess_messages.table.options import MARK, Layout, is_queue

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

__all__ = ["existing_layout", "existing_options", "for_existing_queues", "has_mark"]

QueueComparator = Callable[["AutogenContext", ops.ModifyTableOps, Table, Table], None]
"""Compares an existing table with a queue of the models, and changes the operations on it."""

TableComparator = Callable[..., PriorityDispatchResult]
"""A comparator as Alembic calls it, for each table of the models or of the database."""


def for_existing_queues(compare: QueueComparator) -> TableComparator:
    """Return a table comparator for queues of the models whose table the database has.

    :param compare: is called with the context, the operations on the table, the existing table
        and the model's.
    """

    def comparator(
        context: AutogenContext,
        modify_ops: ops.ModifyTableOps,
        _schema: str | None,
        _name: str,
        existing: Table | None,
        table: Table | None,
    ) -> PriorityDispatchResult:
        if existing is not None and table is not None and is_queue(table):
            compare(context, modify_ops, existing, table)
        return PriorityDispatchResult.CONTINUE

    return comparator


def existing_layout(existing: Table) -> Layout | None:
    """Return the layout of a table that the database has; None for an ordinary table."""
    names = {column.name for column in existing.columns}
    primary_key = tuple(column.name for column in existing.primary_key.columns)
    # The portable layout is before the classic one, whose columns it has, too.
    for layout, spec in LAYOUTS.items():
        if names.issuperset(spec.columns) and primary_key == spec.primary_key:
            return layout
    return None


def existing_options(existing: Table, layout: Layout) -> QueueOptions | None:
    """Return the options that the comment of an existing table contains.

    :param layout: the table's.
    :returns: None if the comment isn't that of a message table, or is malformed.
    """
    try:
        return QueueOptions.from_comment(existing.comment or "").replace(layout=layout)
    except InvalidQueue:
        return None


def has_mark(existing: Table) -> bool:
    """Return whether the comment of an existing table marks it as a message table."""
    return MARK in (existing.comment or "")
