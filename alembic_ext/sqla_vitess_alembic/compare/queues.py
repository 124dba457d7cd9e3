"""Replace the operations that create and drop the tables of queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import CommandError, DispatchPriority, PriorityDispatchResult
from sqlalchemy import Table

from sqla_vitess_messages import InvalidQueue
from sqla_vitess_messages.table.options import is_queue, queue_options
from sqla_vitess_messages.table.order import existing_order
from sqla_vitess_messages.table.validate import check_message_table

from ..operations import CreateMessageQueueOp, DropMessageQueueOp
from ..vschema_operations import SEQUENCE
from .existing import default_options, existing_layout, existing_options, has_mark
from .vindexes import existing_vindexes

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


def _check_message_tables(
    context: AutogenContext, _upgrade_ops: ops.UpgradeOps
) -> PriorityDispatchResult:
    """Refuse models whose message tables Vitess could not work with.

    :raises CommandError: with the table and what is wrong.
    """
    for table in context.sorted_tables:
        try:
            check_message_table(table)
        except InvalidQueue as error:
            raise CommandError(str(error)) from error
    return PriorityDispatchResult.CONTINUE


def _compare_queues(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Replace the creation and removal of tables that are queues."""
    queues = {
        (table.schema, table.name): table for table in context.sorted_tables if is_queue(table)
    }
    replaced: list[ops.MigrateOperation] = []
    for operation in upgrade_ops.ops:
        if isinstance(operation, ops.CreateTableOp):
            replaced.append(_creating(operation, queues))
        elif isinstance(operation, ops.DropTableOp):
            replaced += _dropping(context, operation)
        else:
            replaced.append(operation)
    upgrade_ops.ops = replaced
    return PriorityDispatchResult.CONTINUE


def _creating(
    operation: ops.CreateTableOp, queues: Mapping[tuple[str | None, str], Table]
) -> ops.MigrateOperation:
    """Return the operation that creates a table, which may be a queue's."""
    table = queues.get((operation.schema, operation.table_name))
    if table is None:
        return operation
    return CreateMessageQueueOp.from_table(table, queue_options(table))


def _dropping(context: AutogenContext, operation: ops.DropTableOp) -> list[ops.MigrateOperation]:
    """Return the operations that drop a table that no model has."""
    existing = operation.to_table(context.migration_context)
    if existing.comment == SEQUENCE:
        return []  # op.create_sequence made it; it has no model and stays.
    layout = existing_layout(existing)
    keeps_comments = context.migration_context.dialect.supports_comments
    if layout is None or (keeps_comments and not has_mark(existing)):
        return [operation]
    options = existing_options(context, existing, layout) or default_options(
        context, existing, layout
    )
    if vindexes := existing_vindexes(context, existing):
        options = options.replace(shard_by=vindexes[0].columns, vindex=vindexes[0].name)
    order = existing_order(context.inspector, existing.name, existing.schema)
    if order is not None:
        options = options.replace(**order._asdict())
    creating = CreateMessageQueueOp.from_table(existing, options)
    return [DropMessageQueueOp(existing.name, schema=existing.schema, creating=creating)]


def setup(plugin: Plugin) -> None:
    """Register the comparator, and the check of the models before all comparisons."""
    plugin.add_autogenerate_comparator(
        _check_message_tables, "autogenerate", "message_queues", priority=DispatchPriority.FIRST
    )
    plugin.add_autogenerate_comparator(
        _compare_queues, "autogenerate", "message_queues", priority=DispatchPriority.LAST
    )
