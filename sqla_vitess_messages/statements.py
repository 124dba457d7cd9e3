"""The statements that create queues, as text to be read before they are run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import URL, Table
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

from .ddl import MYSQL, OPTIONS_KEY, index_names
from .errors import InvalidArgument
from .options import QueueOptions
from .vschema import AddVindex

__all__ = ["statements"]


def statements(queues: Iterable[Table], dialect_name: str) -> Iterator[str]:
    """Yield what creates the tables, their indexes, and their part of the vschema.

    :param queues: the tables of the models.
    :param dialect_name: ``mysql``, ``mariadb`` or ``sqlite``.
    :raises InvalidArgument: for another database.
    """
    if dialect_name not in (*MYSQL, "sqlite"):
        raise InvalidArgument(f"dialect={dialect_name!r}: expected mysql, mariadb or sqlite")
    dialect = URL.create(dialect_name).get_dialect()()
    for queue in queues:
        for element in _elements(queue, dialect_name):
            yield str(element.compile(dialect=dialect)).strip()


def _elements(queue: Table, dialect_name: str) -> Iterator[ExecutableDDLElement]:
    yield CreateTable(queue)
    # On MySQL the queue's own indexes are in CREATE TABLE.
    left_out = index_names(queue, "mysql")
    for index in sorted(queue.indexes, key=lambda index: str(index.name)):
        is_own = index.name in index_names(queue, "sqlite")
        if index.name not in left_out and not (is_own and dialect_name in MYSQL):
            yield CreateIndex(index)
    options: QueueOptions = queue.info[OPTIONS_KEY]
    if dialect_name in MYSQL and options.shard_by and options.vindex:
        yield AddVindex(queue.name, options.shard_by, options.vindex, keyspace=queue.schema)
