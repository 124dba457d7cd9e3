"""Parts of the statements on a queue's rows: which rows, by which index, how many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    Table,
    UnaryExpression,
    Update,
    bindparam,
    update,
)
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.operators import custom_op

from ..table.layouts import LAYOUTS
from ..table.options import column_named, queue_options
from ..vitess.server import MYSQL

__all__ = [
    "CHUNK",
    "batch_parameters",
    "by_index",
    "chunks",
    "id_condition",
    "key_attributes",
    "key_columns",
    "key_getter",
    "key_names",
    "key_parameters",
    "shard_columns",
    "shard_conditions",
    "unindexed",
    "update_by_id",
    "update_by_key",
]

CHUNK = 500
"""Rows in one statement. Vitess refuses an UPDATE of more than 10,000 rows."""

T = TypeVar("T")
S = TypeVar("S", bound=Select)  # type: ignore[type-arg]  # Of as many columns as it likes.


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Yield the items in lists that fit into one statement."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def unindexed(column: ColumnElement[T]) -> ColumnElement[T]:
    """Return a column in a form for which SQLite uses no index, as it has no FORCE INDEX.

    Otherwise it reads all unsettled messages for each batch of settlements.
    """
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def by_index(statement: S, table: Table, index: str) -> S:
    """Make MySQL use this index: with another one, or a scan, it locks all rows that it reads."""
    for dialect in MYSQL:
        statement = statement.with_hint(table, f"FORCE INDEX ({index})", dialect)
    return statement


@lru_cache(maxsize=256)
def key_names(table: Table) -> tuple[str, ...]:
    """Return the columns that identify a row and its shard; ``id`` is the first of them."""
    options = queue_options(table)
    names = ("id", *LAYOUTS[options.layout].primary_key, *(options.shard_by or ()))
    return tuple(dict.fromkeys(names))


@lru_cache(maxsize=256)
def key_columns(table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of :func:`key_names`."""
    return _columns(table, key_names(table))


@lru_cache(maxsize=256)
def shard_columns(table: Table) -> tuple[Column[Any], ...]:
    """Return the columns that determine a row's shard."""
    return _columns(table, queue_options(table).shard_by or ())


def _columns(table: Table, names: Sequence[str]) -> tuple[Column[Any], ...]:
    # They exist: that was checked when the table became a queue.
    found = [column_named(table, name) for name in names]
    return tuple(column for column in found if column is not None)


@lru_cache(maxsize=256)
def key_attributes(mapper: Mapper[Any], table: Table) -> tuple[str, ...]:
    """Return the attributes that :func:`key_columns` are mapped to."""
    return tuple(mapper.get_property_by_column(column).key for column in key_columns(table))


@lru_cache(maxsize=256)
def key_getter(mapper: Mapper[Any], table: Table) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function from an instance's ``__dict__`` to the values of :func:`key_columns`."""
    attributes = key_attributes(mapper, table)
    if len(attributes) > 1:
        return itemgetter(*attributes)
    [attribute] = attributes
    return lambda values: (values[attribute],)


def key_parameters(table: Table, key: tuple[Any, ...]) -> dict[str, Any]:
    """Return the parameters of :func:`update_by_key`."""
    return {f"_{name}": value for name, value in zip(key_names(table), key, strict=True)}


def batch_parameters(table: Table, keys: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Return the parameters of :func:`id_condition` and :func:`shard_conditions`."""
    columns = dict(zip(key_names(table), zip(*keys, strict=True), strict=True))
    shard_by = queue_options(table).shard_by or ()
    return {f"_{name}s": list(dict.fromkeys(columns[name])) for name in ("id", *shard_by)}


def id_condition(table: Table) -> ColumnElement[bool]:
    """Return the condition that a row's ``id`` is one of ``_ids``."""
    return table.c.id.in_(bindparam("_ids", expanding=True))


def shard_conditions(table: Table) -> list[ColumnElement[bool]]:
    """Return the conditions that lead vtgate to the shards of a batch, instead of to all."""
    return [
        column.in_(bindparam(f"_{column.name}s", expanding=True))
        for column in shard_columns(table)
        if column.name != "id"
    ]


def update_by_id(table: Table) -> Update:
    """Return an UPDATE of the rows whose ``id`` is one of ``_ids``.

    Left to choose, MySQL scans a small table, or all of ``time_acked IS NULL``, and locks the
    gaps that producers insert into: they met deadlocks.
    """
    statement = update(table).where(id_condition(table))
    index = LAYOUTS[queue_options(table).layout].id_index
    for dialect in MYSQL:
        statement = statement.with_hint(f"FORCE INDEX ({index})", dialect_name=dialect)
    return statement


def update_by_key(table: Table) -> Update:
    """Return an UPDATE of one row by its primary key and the columns that determine its shard."""
    return update(table).where(
        *(column == bindparam(f"_{column.name}") for column in key_columns(table))
    )
