"""Compare the queue's own indexes, by their names alone; :mod:`.options` compares the key's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import DispatchPriority
from sqlalchemy import Column, Index, Table, UniqueConstraint
from sqlalchemy.schema import SchemaItem

from sqla_vitess_messages.table.build import index_columns, index_name
from sqla_vitess_messages.table.layouts import LAYOUTS
from sqla_vitess_messages.table.options import is_queue, queue_options
from sqla_vitess_messages.table.order import ORDER_INDEX
from sqla_vitess_messages.table.unique import UNIQUE_COLUMNS, UNIQUE_INDEX
from sqla_vitess_messages.vitess.server import is_mysql

from .existing import exclude, existing_layout, for_existing_queues

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]

_SPEC_NAMES = {spec.name for layout in LAYOUTS.values() for spec in layout.indexes} | {
    ORDER_INDEX,
    UNIQUE_INDEX,
}
_COLUMNS_OF_EVERY_LAYOUT = set.intersection(*(set(layout.columns) for layout in LAYOUTS.values()))


def _is_compared_by_alembic(
    item: SchemaItem, name: str | None, _type: str, _reflected: bool, _compare_to: object
) -> bool:
    """Return False for the queues' own indexes; reflection may lose their DESC."""
    if isinstance(item, Column):
        # AlterMessageQueueOp adds and drops these, with their index.
        has_all = item.table is not None and set(UNIQUE_COLUMNS).issubset(item.table.c.keys())
        return not has_all or item.name not in UNIQUE_COLUMNS
    if not isinstance(item, (Index, UniqueConstraint)) or item.table is None:
        return True
    table = item.table
    may_be_queue = is_queue(table) or _COLUMNS_OF_EVERY_LAYOUT.issubset(table.c.keys())
    return not may_be_queue or str(name).removeprefix(f"{table.name}_") not in _SPEC_NAMES


@for_existing_queues
def _compare_indexes(
    context: AutogenContext, modify_ops: ops.ModifyTableOps, existing: Table, table: Table
) -> None:
    """Add the queue's indexes that the table lacks. A change of the layout adds its own."""
    layout = queue_options(table).layout
    if existing_layout(existing) != layout:
        return
    is_inline = is_mysql(context.migration_context.dialect)
    names = {index["name"] for index in context.inspector.get_indexes(table.name, table.schema)}
    for spec in LAYOUTS[layout].indexes:
        name = spec.name if is_inline else index_name(table, spec)
        if name not in names:
            modify_ops.ops.append(
                ops.CreateIndexOp(
                    name,
                    table.name,
                    index_columns(table, spec),
                    schema=table.schema,
                    unique=spec.unique,
                )
            )


def setup(plugin: Plugin) -> None:
    """Register the comparator, and the filter that keeps Alembic's own from these indexes."""
    exclude(plugin, "message_queue_indexes", _is_compared_by_alembic)
    plugin.add_autogenerate_comparator(
        _compare_indexes, "table", "message_queue_indexes", priority=DispatchPriority.LAST
    )
