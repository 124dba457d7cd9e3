"""Compare a queue's layout: convert ordinary tables, and classic queues to the portable layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import CommandError, DispatchPriority
from sqlalchemy import Integer, Table

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.table.layouts import LAYOUTS
from sqla_vitess_messages.table.options import Layout, queue_options

from ..operations import AlterMessageQueueOp, ConvertToMessageQueueOp
from .existing import (
    default_options,
    existing_key,
    existing_layout,
    existing_options,
    for_existing_queues,
    has_mark,
)

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


@for_existing_queues
def _compare_layout(
    context: AutogenContext, modify_ops: ops.ModifyTableOps, existing: Table, table: Table
) -> None:
    """Replace Alembic's changes of the layout's columns by a change of the layout.

    :raises CommandError: when the table can't get the model's layout.
    """
    # A table is ordered by an operation of its own.
    options = queue_options(table).replace(ordered_by=None, halt_on_dead=False)
    spec = LAYOUTS[options.layout]
    layout = existing_layout(existing)
    if layout == options.layout:
        # A key is NOT NULL, also in the classic layout, which doesn't declare it.
        _remove_column_operations(modify_ops, spec.primary_key)
        return
    _remove_column_operations(modify_ops, spec.columns)
    if layout is None:
        modify_ops.ops.append(_conversion(existing, table, options))
    else:
        modify_ops.ops.append(_layout_change(context, existing, layout, table, options))


def _remove_column_operations(modify_ops: ops.ModifyTableOps, names: Sequence[str]) -> None:
    """Remove the operations that add or alter these columns."""

    def is_kept(operation: ops.MigrateOperation) -> bool:
        if isinstance(operation, ops.AddColumnOp):
            return operation.column.name not in names
        return not isinstance(operation, ops.AlterColumnOp) or operation.column_name not in names

    modify_ops.ops = list(filter(is_kept, modify_ops.ops))


def _conversion(existing: Table, table: Table, options: QueueOptions) -> ConvertToMessageQueueOp:
    _check_convertible(existing, options)
    return ConvertToMessageQueueOp(
        table.name,
        options,
        autoincrement=existing.c.id.autoincrement is True,
        schema=table.schema,
    )


def _layout_change(
    context: AutogenContext, existing: Table, layout: Layout, table: Table, options: QueueOptions
) -> AlterMessageQueueOp:
    if (layout, options.layout) != ("classic", "portable"):
        raise CommandError(
            f"table {table.name!r}: has the {layout} layout and the model the {options.layout} "
            "one; on the way there the table would lack a column or key that Vitess needs. Set "
            f"layout={layout!r}, or define a queue of another name and let this one run empty"
        )
    return AlterMessageQueueOp(
        table.name,
        options,
        schema=table.schema,
        existing_layout=layout,
        existing_unique_by=existing_key(context, existing),
        existing=existing_options(context, existing, layout)
        or default_options(context, existing, layout),
    )


def _check_convertible(existing: Table, options: QueueOptions) -> None:
    """Check that an ordinary table can become a queue.

    :raises CommandError: with the reason and the remedy.
    """
    names = [column.name for column in existing.columns]
    primary_key = [column.name for column in existing.primary_key.columns]
    if has_mark(existing):
        missing = [name for name in LAYOUTS["minimal"].columns if name not in names]
        raise CommandError(
            f"table {existing.name!r}: its comment marks it as a message table, but it "
            f"{'lacks ' + ', '.join(missing) if missing else 'has another primary key'}; "
            "Vitess can't work with it. Remove the comment, or drop the table, by hand first"
        )
    if options.layout == "classic":
        raise CommandError(
            f"table {existing.name!r}: an existing table becomes a queue with the portable or "
            "minimal layout, not the classic one"
        )
    if primary_key != ["id"] or not isinstance(existing.c.id.type, Integer):
        raise CommandError(
            f"table {existing.name!r}: its primary key is ({', '.join(primary_key)}); only a table "
            "whose primary key is an integer column 'id' can become a queue. Define a queue of "
            "another name, and copy the rows"
        )
    reserved = set(LAYOUTS[options.layout].columns) - {"id"}
    if clashes := sorted(reserved.intersection(names)):
        raise CommandError(
            f"table {existing.name!r}: its columns {', '.join(clashes)} have names that belong to "
            "the queue; rename them in a migration of their own first"
        )


def setup(plugin: Plugin) -> None:
    """Register the comparator."""
    plugin.add_autogenerate_comparator(
        _compare_layout, "table", "message_queue_layout", priority=DispatchPriority.LAST
    )
