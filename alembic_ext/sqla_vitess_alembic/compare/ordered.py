"""Compare by which columns a queue is ordered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import DispatchPriority
from sqlalchemy import Column, Table
from sqlalchemy.schema import SchemaItem

from sqla_vitess_messages.table.options import queue_options
from sqla_vitess_messages.table.order import ORDER_COLUMNS, existing_order, order_of

from ..order_operations import AlterMessageOrderOp
from .existing import exclude, for_existing_queues

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


def _is_compared_by_alembic(
    item: SchemaItem, name: str | None, _type: str, _reflected: bool, _compare_to: object
) -> bool:
    """Return False for the columns of the order: they change together."""
    if not isinstance(item, Column) or name not in ORDER_COLUMNS:
        return True
    # A table with one of them alone has a payload column of that name.
    return item.table is None or not set(item.table.c.keys()).issuperset(ORDER_COLUMNS)


@for_existing_queues
def _compare_order(
    context: AutogenContext, modify_ops: ops.ModifyTableOps, _existing: Table, table: Table
) -> None:
    """Add the change of the order, if there is one."""
    existing = existing_order(context.inspector, table.name, table.schema)
    order = order_of(queue_options(table))
    if order != existing:
        modify_ops.ops.append(AlterMessageOrderOp(table.name, order, existing, schema=table.schema))


def setup(plugin: Plugin) -> None:
    """Register the comparator, and the filter that keeps Alembic's own from these columns."""
    exclude(plugin, "message_queue_ordered", _is_compared_by_alembic)
    plugin.add_autogenerate_comparator(
        _compare_order, "table", "message_queue_ordered", priority=DispatchPriority.LAST
    )
