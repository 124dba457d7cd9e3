"""Read a queue from the table that the database has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Table
from sqlalchemy.schema import SchemaItem

from sqla_vitess_messages import InvalidQueue, QueueOptions
from sqla_vitess_messages.table.layouts import LAYOUTS
from sqla_vitess_messages.table.options import MARK, Layout, is_queue
from sqla_vitess_messages.table.unique import UNIQUE_INDEX, UNSETTLED

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = [
    "exclude",
    "existing_key",
    "existing_layout",
    "existing_options",
    "for_existing_queues",
    "has_mark",
]

QueueComparator = Callable[["AutogenContext", ops.ModifyTableOps, Table, Table], None]
"""Compares an existing table with a queue of the models, and changes the operations on it."""

TableComparator = Callable[..., PriorityDispatchResult]
"""A comparator as Alembic calls it, for each table of the models or of the database."""

ObjectFilter = Callable[[SchemaItem, str | None, str, bool, object], bool]
"""Returns whether Alembic is to compare an object."""


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


def existing_options(
    context: AutogenContext, existing: Table, layout: Layout
) -> QueueOptions | None:
    """Return the options that the comment of an existing table contains.

    :param layout: the table's.
    :returns: None if the comment isn't that of a message table, or is malformed.
    """
    try:
        options = QueueOptions.from_comment(existing.comment or "")
    except InvalidQueue:
        return None
    return options.replace(layout=layout, unique_by=existing_key(context, existing))


def default_options(context: AutogenContext, existing: Table, layout: Layout) -> QueueOptions:
    """Return the options of a table whose comment doesn't contain them."""
    return QueueOptions(layout=layout, unique_by=existing_key(context, existing))


def existing_key(context: AutogenContext, existing: Table) -> tuple[str, ...] | None:
    """Return the columns of which a table that the database has holds one unsettled message."""
    for index in context.inspector.get_indexes(existing.name, existing.schema):
        if str(index["name"]).removeprefix(f"{existing.name}_") == UNIQUE_INDEX:
            names = index["column_names"]
            return tuple(name for name in names if name and name != UNSETTLED) or None
    return None


def has_mark(existing: Table) -> bool:
    """Return whether the comment of an existing table marks it as a message table."""
    return MARK in (existing.comment or "")


def exclude(plugin: Plugin, name: str, is_compared_by_alembic: ObjectFilter) -> None:
    """Keep Alembic's own comparison from columns and indexes that are compared by other means.

    :param name: of the comparator that does so.
    :param is_compared_by_alembic: is called as ``include_object`` of an ``env.py`` is.
    """

    def add_filter(context: AutogenContext, _upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
        context._object_filters.append(is_compared_by_alembic)
        return PriorityDispatchResult.CONTINUE

    plugin.add_autogenerate_comparator(
        add_filter, "autogenerate", name, priority=DispatchPriority.FIRST
    )
