"""Put the operations on each table in an order that keeps a queue working after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import DispatchPriority, PriorityDispatchResult

from sqla_vitess_messages.table.options import MARK

from ..operations import AlterMessageQueueOp, ConvertToMessageQueueOp
from ..order_operations import AlterMessageOrderOp
from ..vschema_operations import AddVindexOp

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]

_QUEUE_OPERATIONS = (
    AlterMessageQueueOp,
    ConvertToMessageQueueOp,
    AddVindexOp,
    AlterMessageOrderOp,
)


def _order_operations(
    _context: AutogenContext, upgrade_ops: ops.UpgradeOps
) -> PriorityDispatchResult:
    ordered: list[ops.MigrateOperation] = []
    for operation in upgrade_ops.ops:
        if isinstance(operation, ops.ModifyTableOps):
            ordered += _in_order(operation)
        else:
            ordered.append(operation)
    upgrade_ops.ops = ordered
    return PriorityDispatchResult.CONTINUE


def _in_order(modify: ops.ModifyTableOps) -> list[ops.MigrateOperation]:
    """Return the operations on a table in order.

    A column is added before the comment names it, and dropped after the comment no longer does:
    Alembic drops columns last, and a downgrade has the reverse order. The operations on queues
    are outside of the ModifyTableOps, because that may be rendered as a batch.
    """
    queue = [operation for operation in modify.ops if isinstance(operation, _QUEUE_OPERATIONS)]
    if not queue:
        # A table that is no longer a queue loses its comment before its columns.
        modify.ops = sorted(modify.ops, key=_removes_mark, reverse=True)
        return [modify]
    added = [operation for operation in modify.ops if isinstance(operation, ops.AddColumnOp)]
    rest = [operation for operation in modify.ops if operation not in (*queue, *added)]
    ordered = [
        ops.ModifyTableOps(modify.table_name, added, schema=modify.schema),
        *queue,
        ops.ModifyTableOps(modify.table_name, rest, schema=modify.schema),
    ]
    return [item for item in ordered if not isinstance(item, ops.ModifyTableOps) or item.ops]


def _removes_mark(operation: ops.MigrateOperation) -> bool:
    """Return whether an operation changes the comment of a message table."""
    if not isinstance(operation, (ops.CreateTableCommentOp, ops.DropTableCommentOp)):
        return False
    return MARK in (operation.existing_comment or "")


def setup(plugin: Plugin) -> None:
    """Register the step that comes after all comparisons."""
    plugin.add_autogenerate_comparator(
        _order_operations, "autogenerate", "message_queue_order", priority=DispatchPriority.LAST
    )
