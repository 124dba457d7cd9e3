"""Compare the vindex of a queue with the vschema of a sharded keyspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from alembic.util import CommandError, DispatchPriority
from sqlalchemy import Table

from sqla_vitess_messages.table.options import queue_options
from sqla_vitess_messages.vitess.server import is_vitess
from sqla_vitess_messages.vitess.vschema import Vindex, is_sharded, vindexes_of

from ..vschema_operations import AddVindexOp
from .existing import for_existing_queues

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

__all__ = ["existing_vindexes", "setup"]


@for_existing_queues
def _compare_vindexes(
    context: AutogenContext, modify_ops: ops.ModifyTableOps, _existing: Table, table: Table
) -> None:
    """Add the vindex that the vschema lacks.

    :raises CommandError: when the table is sharded by something else.
    """
    options = queue_options(table)
    vindexes = existing_vindexes(context, table)
    if options.shard_by is None or options.vindex is None or vindexes is None:
        return
    if not vindexes:
        modify_ops.ops.append(
            AddVindexOp(table.name, options.shard_by, options.vindex, keyspace=table.schema)
        )
    elif vindexes[0].columns != options.shard_by or vindexes[0].name != options.vindex:
        raise CommandError(
            f"table {table.name!r}: is sharded by {vindexes[0].name}"
            f"({', '.join(vindexes[0].columns)}) and the model says {options.vindex}"
            f"({', '.join(options.shard_by)}); rows can't move to other shards in a migration. "
            "Define a queue of another name and let this one run empty"
        )


def existing_vindexes(context: AutogenContext, table: Table) -> list[Vindex] | None:
    """Return the vindexes of a table; None where there are no shards."""
    connection = context.connection
    if connection is None or not is_vitess(connection) or not is_sharded(connection, table):
        return None
    return vindexes_of(connection, table)


def setup(plugin: Plugin) -> None:
    """Register the comparator."""
    plugin.add_autogenerate_comparator(
        _compare_vindexes, "table", "message_queue_vindexes", priority=DispatchPriority.LAST
    )
