"""Compare a queue's options with those in the table comment."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from alembic.operations import ops
from alembic.util import DispatchPriority
from sqlalchemy import Table

from sqla_vitess_messages.table.options import CommentOptions, queue_options

from ..operations import AlterMessageQueueOp
from .existing import existing_layout, existing_options, for_existing_queues

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


@for_existing_queues
def _compare_options(
    context: AutogenContext, modify_ops: ops.ModifyTableOps, existing: Table, table: Table
) -> None:
    """Replace Alembic's change of the comment by one of the options, if their meaning differs.

    A change of the layout writes the comment, too.
    """
    modify_ops.ops = [
        operation
        for operation in modify_ops.ops
        if not isinstance(operation, (ops.CreateTableCommentOp, ops.DropTableCommentOp))
    ]
    options = queue_options(table)
    keeps_comments = context.migration_context.dialect.supports_comments
    if existing_layout(existing) != options.layout or not keeps_comments:
        return
    before = existing_options(existing, options.layout)
    if before is None or _meaning(before) != _meaning(options):
        modify_ops.ops.append(
            AlterMessageQueueOp(table.name, options, schema=table.schema, existing=before)
        )


def _meaning(options: CommentOptions) -> dict[str, Any]:
    """Return the options in a comment, regardless of the order in which columns are streamed."""
    values = {field.name: getattr(options, field.name) for field in fields(CommentOptions)}
    columns = options.message_cols
    return {**values, "message_cols": None if columns is None else frozenset(columns)}


def setup(plugin: Plugin) -> None:
    """Register the comparator."""
    plugin.add_autogenerate_comparator(
        _compare_options, "table", "message_queue_options", priority=DispatchPriority.LAST
    )
