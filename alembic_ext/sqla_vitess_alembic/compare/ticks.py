"""Keep the table that remembers the last tick of each periodic message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import DispatchPriority, PriorityDispatchResult

from sqla_vitess_messages.table.ticks import TICKS
from sqla_vitess_messages.vitess.server import is_vitess
from sqla_vitess_messages.vitess.vschema import is_sharded

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


def _keep_ticks(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Leave out operations on the table that can't be meant.

    It is only in the metadata if env.py imports the Periodic objects. So that it isn't there is no
    reason to drop it. In a sharded keyspace, schedulers refuse to use it.
    """
    upgrade_ops.ops = [
        operation
        for operation in upgrade_ops.ops
        if not _is_of_ticks(operation)
        or (isinstance(operation, ops.CreateTableOp) and not _is_in_shards(context))
    ]
    return PriorityDispatchResult.CONTINUE


def _is_of_ticks(operation: ops.MigrateOperation) -> bool:
    """Return whether an operation creates or drops the table."""
    is_of_table = isinstance(operation, (ops.CreateTableOp, ops.DropTableOp))
    return is_of_table and operation.table_name == TICKS.name  # type: ignore[attr-defined]


def _is_in_shards(context: AutogenContext) -> bool:
    connection = context.connection
    return connection is not None and is_vitess(connection) and is_sharded(connection, TICKS)


def setup(plugin: Plugin) -> None:
    """Register the comparator."""
    plugin.add_autogenerate_comparator(
        _keep_ticks, "autogenerate", "periodic_messages", priority=DispatchPriority.LAST
    )
