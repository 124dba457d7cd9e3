"""The statements that create queues, as text to be reviewed before they are executed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import URL, Table
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

from ..errors import InvalidArgument
from ..shown import shown
from ..table.build import index_names
from ..table.options import queue_options
from ..table.pauses import PAUSE_VINDEX, pause_table
from ..table.ticks import TICKS, has_ticks_table
from ..vitess.server import DATABASES, is_mysql
from ..vitess.vschema import AddVindex

__all__ = ["statements"]


def statements(queues: Iterable[Table], dialect_name: str) -> Iterator[str]:
    """Yield the statements that create the tables, their indexes and their part of the vschema.

    :param queues: the tables of the models.
    :param dialect_name: ``mysql``, ``mariadb`` or ``sqlite``.
    :raises InvalidArgument: for another database.
    """
    if dialect_name not in DATABASES:
        raise InvalidArgument(f"dialect={shown(dialect_name)}: expected mysql, mariadb or sqlite")
    dialect = URL.create(dialect_name).get_dialect()()
    queues, mysql, pauses = list(queues), is_mysql(dialect), dict[Table, bool]()
    for queue in queues:
        for element in _elements(queue, mysql=mysql):
            yield str(element.compile(dialect=dialect)).strip()
        if (options := queue_options(queue)).pausable:
            pauses[pause_table(queue)] = mysql and options.shard_by is not None
    for table, sharded in pauses.items():
        yield str(CreateTable(table).compile(dialect=dialect)).strip()
        if sharded:
            vindex = AddVindex(table.name, *PAUSE_VINDEX, keyspace=table.schema)
            yield str(vindex.compile(dialect=dialect))
    if any(has_ticks_table(queue.metadata) for queue in queues):
        yield str(CreateTable(TICKS).compile(dialect=dialect)).strip()


def _elements(queue: Table, *, mysql: bool) -> Iterator[ExecutableDDLElement]:
    yield CreateTable(queue)
    # On MySQL, CREATE TABLE contains the queue's own indexes.
    inline = index_names(queue, inline=False) if mysql else set()
    for index in sorted(queue.indexes, key=lambda index: str(index.name)):
        if index.name not in inline:
            yield CreateIndex(index)
    options = queue_options(queue)
    if mysql and options.shard_by and options.vindex:
        yield AddVindex(queue.name, options.shard_by, options.vindex, keyspace=queue.schema)
