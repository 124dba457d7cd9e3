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
from .options import is_queue, queue_options
from .pauses import PAUSE_VINDEX, PAUSES
from .ticks import TICKS, TICKS_VINDEX

__all__: list[str] = []


def _vindex(table: Table, connection: Connection | None) -> tuple[tuple[str, ...], str] | None:
    """Return by which columns a table of a sharded keyspace is sharded, and how.

    :return: None for a table that isn't a queue's, nor that of the pauses or the last ticks.
    """
    if table.name == PAUSES:
        found = PAUSE_VINDEX
    elif table.name == TICKS.name:
        found = TICKS_VINDEX
    elif is_queue(table) and (options := queue_options(table)).shard_by is not None:
        assert options.vindex is not None
        found = options.shard_by, options.vindex
    else:
        return None
    # In an unsharded keyspace, a vindex would make the keyspace sharded.
    if connection is None or not is_vitess(connection) or not is_sharded(connection, table):
        return None
    return found


@event.listens_for(Table, "after_create")
def _add_vindex(table: Table, connection: Connection | None, **_kw: Any) -> None:
    if (found := _vindex(table, connection)) is not None:
        assert connection is not None
        if not vindexes_of(connection, table):
            keyspace = connection.schema_for_object(table)
            alter_vschema(connection, AddVindex(table.name, *found, keyspace=keyspace))
        wait_until_routable(connection, table)


@event.listens_for(Table, "after_drop")
def _drop_from_vschema(table: Table, connection: Connection | None, **_kw: Any) -> None:
    if _vindex(table, connection) is not None:
        assert connection is not None
        if vindexes_of(connection, table):
            keyspace = connection.schema_for_object(table)
            alter_vschema(connection, DropTable(table.name, keyspace=keyspace))
