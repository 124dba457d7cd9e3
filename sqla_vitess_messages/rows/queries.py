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
    FromClause,
    Select,
    Table,
    UnaryExpression,
    Update,
    bindparam,
    update,
)
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.operators import custom_op

from ..table.keys import columns_named
from ..table.layouts import LAYOUTS
from ..table.options import queue_options
from ..table.unique import REVISION
from ..vitess.server import MYSQL

__all__ = [
    "CHUNK",
    "assign",
    "batch_parameters",
    "by_index",
    "chunks",
    "has_index",
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
    "version_condition",
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


def by_index(statement: S, table: FromClause, index: str) -> S:
    """Make MySQL use this index: with another one, or a scan, it locks all rows that it reads."""
    for dialect in MYSQL:
        statement = statement.with_hint(table, f"FORCE INDEX ({index})", dialect)
    return statement


def has_index(table: Table, name: str) -> bool:
    """Return whether a queue's layout has an index, by the name that it has on MySQL."""
    return any(spec.name == name for spec in LAYOUTS[queue_options(table).layout].indexes)


@lru_cache(maxsize=256)
def key_names(table: Table) -> tuple[str, ...]:
    """Return the columns that identify a row and its shard; ``id`` is the first of them.

    Where payloads can be replaced, the last one identifies the payload.
    """
    options = queue_options(table)
    names = ("id", *LAYOUTS[options.layout].primary_key, *(options.shard_by or ()))
    if options.unique_by is not None:
        names = (*names, REVISION)
    return tuple(dict.fromkeys(names))


@lru_cache(maxsize=256)
def key_columns(table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of :func:`key_names`."""
    return tuple(columns_named(table, key_names(table)))


@lru_cache(maxsize=256)
def shard_columns(table: Table) -> tuple[Column[Any], ...]:
    """Return the columns that determine a row's shard."""
    return tuple(columns_named(table, queue_options(table).shard_by))


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
    """Return the parameters of :func:`id_condition` and :func:`shard_conditions`.

    Where payloads can be replaced, also that of :func:`version_condition`, the same for all keys.
    """
    columns = dict(zip(key_names(table), zip(*keys, strict=True), strict=True))
    options = queue_options(table)
    names = ("id", *(options.shard_by or ()))
    parameters: dict[str, Any] = {f"_{name}s": list(dict.fromkeys(columns[name])) for name in names}
    if options.unique_by is not None:
        parameters[f"_{REVISION}"] = columns[REVISION][0]
    return parameters


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


def version_condition(table: Table) -> ColumnElement[bool]:
    """Return the condition that rows have the payload of ``_revision``."""
    condition: ColumnElement[bool] = table.c[REVISION] == bindparam(f"_{REVISION}")
    return condition


def assign(statement: Update, **values: Any) -> Update:
    """Return an UPDATE that assigns these values, in this order, and changes nothing else.

    MySQL evaluates an assignment with the values of those before it. An ``onupdate`` of the user's
    columns is for changes that the user makes: the columns keep their values here.
    """
    assert isinstance(statement.table, Table)
    return statement.ordered_values(*(_kept(statement.table) | values).items())


@lru_cache(maxsize=256)
def _kept(table: Table) -> dict[str, ColumnElement[Any]]:
    """Return the columns with an ``onupdate``, which runs unless they are assigned."""
    return {column.key: column for column in table.c if column.onupdate is not None}


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
