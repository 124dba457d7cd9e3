"""Write to the vschema by which columns a queue is sharded, when its table is created."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, event

from .ddl import OPTIONS_KEY, is_vitess
from .options import QueueOptions
from .vschema import (
    AddVindex,
    DropTable,
    alter_vschema,
    is_sharded,
    vindexes_of,
    wait_until_known,
)

__all__: list[str] = []


def _sharded_queue(table: Table, connection: Connection | None) -> QueueOptions | None:
    """Return the options of a queue that the connection's keyspace shards."""
    options = table.info.get(OPTIONS_KEY)
    if not isinstance(options, QueueOptions) or options.shard_by is None:
        return None
    # A vindex would turn an unsharded keyspace into a sharded one.
    if connection is None or not is_vitess(connection) or not is_sharded(connection):
        return None
    return options


@event.listens_for(Table, "after_create")
def _add_vindex(table: Table, connection: Connection | None, **_kw: Any) -> None:
    if (options := _sharded_queue(table, connection)) is not None:
        assert connection is not None
        assert options.shard_by is not None
        assert options.vindex is not None
        if not vindexes_of(connection, table):
            adding = AddVindex(table.name, options.shard_by, options.vindex, keyspace=table.schema)
            alter_vschema(connection, adding)
        wait_until_known(connection, table)


@event.listens_for(Table, "after_drop")
def _drop_from_vschema(table: Table, connection: Connection | None, **_kw: Any) -> None:
    if _sharded_queue(table, connection) is not None:
        assert connection is not None
        if vindexes_of(connection, table):
            alter_vschema(connection, DropTable(table.name, keyspace=table.schema))
