"""Add a sharded queue to the vschema when its table is created; remove it when it is dropped."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, event

from ..vitess.server import is_vitess
from ..vitess.vschema import (
    AddVindex,
    DropTable,
    alter_vschema,
    is_sharded,
    vindexes_of,
    wait_until_routable,
)
from .options import QueueOptions, is_queue, queue_options

__all__: list[str] = []


def _sharded_queue(table: Table, connection: Connection | None) -> QueueOptions | None:
    """Return the options of a queue in a sharded keyspace; None for any other table."""
    if not is_queue(table) or (options := queue_options(table)).shard_by is None:
        return None
    # In an unsharded keyspace, a vindex would make the keyspace sharded.
    if connection is None or not is_vitess(connection) or not is_sharded(connection, table):
        return None
    return options


@event.listens_for(Table, "after_create")
def _add_vindex(table: Table, connection: Connection | None, **_kw: Any) -> None:
    if (options := _sharded_queue(table, connection)) is not None:
        assert connection is not None
        assert options.shard_by is not None
        assert options.vindex is not None
        if not vindexes_of(connection, table):
            keyspace = connection.schema_for_object(table)
            adding = AddVindex(table.name, options.shard_by, options.vindex, keyspace=keyspace)
            alter_vschema(connection, adding)
        wait_until_routable(connection, table)


@event.listens_for(Table, "after_drop")
def _drop_from_vschema(table: Table, connection: Connection | None, **_kw: Any) -> None:
    if _sharded_queue(table, connection) is not None:
        assert connection is not None
        if vindexes_of(connection, table):
            keyspace = connection.schema_for_object(table)
            alter_vschema(connection, DropTable(table.name, keyspace=keyspace))
