"""Compare a queue's options with those in the table comment."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from alembic.operations import ops
from alembic.util import DispatchPriority
from sqlalchemy import Table

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.table.options import CommentOptions, queue_options

from ..operations import AlterMessageQueueOp
from .existing import existing_key, existing_layout, existing_options, for_existing_queues

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
    if existing_layout(existing) != options.layout:
        return
    before = existing_options(context, existing, options.layout)
    key = existing_key(context, existing)
    if not context.migration_context.dialect.supports_comments:
        streamed = [name for name in options.message_cols or () if name in existing.c]
        before = options.replace(unique_by=key, message_cols=streamed or None)
        is_changed = key != options.unique_by
    else:
        is_changed = before is None or _meaning(before) != _meaning(options)
    if is_changed:
        modify_ops.ops.append(
            AlterMessageQueueOp(
                table.name,
                options,
                schema=table.schema,
                existing_unique_by=key,
                existing=before,
            )
        )


def _meaning(options: QueueOptions) -> dict[str, Any]:
    """Return the key and the options in a comment, regardless of the streamed columns' order."""
    values = {field.name: getattr(options, field.name) for field in fields(CommentOptions)}
    columns = options.message_cols
    values["message_cols"] = None if columns is None else frozenset(columns)
    return values | {"unique_by": options.unique_by}


def setup(plugin: Plugin) -> None:
    """Register the comparator."""
    plugin.add_autogenerate_comparator(
        _compare_options, "table", "message_queue_options", priority=DispatchPriority.LAST
    )
