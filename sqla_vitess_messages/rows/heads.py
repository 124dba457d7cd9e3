"""Statements that find the heads of an ordered queue: the first open message of each key.

None of them reads more than the heads themselves, however many messages a key has. What each needs
for that was measured on MySQL 8.0 with 100,000 messages of one key: the keys come from a loose
index scan ("Using index for group-by": 0.3 ms), which takes the constant ``seq_open`` in the GROUP
BY as well (without: 34 ms); the head of one key needs an ORDER BY of the whole index
(0.03 ms, and with only ``seq`` 29 ms, as MySQL then sorts).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Row,
    ScalarSelect,
    Select,
    Subquery,
    Table,
    and_,
    bindparam,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
)

from .. import clock
from ..table.layouts import LAYOUTS
from ..table.options import queue_options
from ..table.order import OPEN, ORDER_INDEX, SEQ, order_columns
from .queries import by_index, id_condition, unindexed

__all__ = [
    "Head",
    "first_of",
    "followers",
    "is_first",
    "key_walk",
    "key_walk_by_dives",
    "lock_due",
    "lock_followers",
]


class Head(NamedTuple):
    """The first open message of a key.

    :param wait: nanoseconds until it is due; 0 or less if it is.
    :param key: the values of the key's columns.
    """

    id: int
    wait: int
    key: tuple[Any, ...]

    @classmethod
    def of(cls, row: Row[Any]) -> Head:
        """Return the head that a row of these statements shows."""
        values = tuple(row)
        return cls(values[0], values[1], values[2:])


def _columns(source: FromClause, table: Table) -> list[ColumnElement[Any]]:
    """Return the columns of the key in a table, an alias or a subquery of it."""
    return [source.c[column.key] for column in order_columns(table)]


def _is_open(source: FromClause) -> ColumnElement[bool]:
    return source.c[OPEN] == 1


def _in_order(source: FromClause, table: Table) -> list[ColumnElement[Any]]:
    """Return every column of the index, in order."""
    return [source.c[OPEN], *_columns(source, table), source.c[SEQ], source.c.id]


def _head_columns(table: Table) -> list[ColumnElement[Any]]:
    return [table.c.id, table.c.time_next - clock.database_now()]


def _first_of_key(table: Table, of: FromClause) -> ScalarSelect[Any]:
    """Return the ``id`` of the first open message that has the key of a row of ``of``."""
    first = table.alias("first_of_key")
    same_key = zip(_columns(first, table), _columns(of, table), strict=True)
    statement = (
        select(first.c.id)
        .where(_is_open(first), *(one == other for one, other in same_key))
        .order_by(*_in_order(first, table))
        .limit(1)
        .correlate(of)
    )
    return _by_order_index(statement, first).scalar_subquery()


def _by_order_index(statement: Select[Any], source: FromClause) -> Select[Any]:
    return by_index(statement, source, ORDER_INDEX)


def is_first(table: Table) -> ColumnElement[bool]:
    """Return the condition that a message is the first open one of its key."""
    return table.c.id == _first_of_key(table, table)


@lru_cache(maxsize=256)
def key_walk(table: Table, *, from_start: bool) -> Select[Any]:
    """Return the SELECT of the heads of up to ``_limit`` keys, in the order of the keys.

    Messages of one place are both there; the one with the lower ``id`` is the head.

    :param from_start: whether it begins with the first key, or after that of the parameters
        ``_after_0``, ``_after_1`` …
    """
    key = _columns(table, table)
    keys = (
        select(table.c[OPEN], *key, func.min(table.c[SEQ]).label(SEQ))
        .where(_is_open(table), *([] if from_start else [_is_after(order_columns(table))]))
        .group_by(table.c[OPEN], *key)
        .order_by(table.c[OPEN], *key)
        .limit(bindparam("_limit"))
    )
    walked = _by_order_index(keys, table).subquery("walked")
    same = zip(key, _columns(walked, table), strict=True)
    return _by_order_index(
        select(*_head_columns(table), *_columns(walked, table))
        .join(
            walked,
            and_(
                _is_open(table),
                *(one == other for one, other in same),
                table.c[SEQ] == walked.c[SEQ],
            ),
        )
        .order_by(*_columns(walked, table), table.c.id),
        table,
    )


def _is_after(key: list[Column[Any]]) -> ColumnElement[bool]:
    """Return the condition that a row's key comes after that of the parameters."""
    last = [bindparam(f"_after_{number}", type_=one.type) for number, one in enumerate(key)]
    if len(key) == 1:
        return key[0] > last[0]
    alternatives = [
        and_(
            *(one == value for one, value in zip(key[:number], last[:number], strict=True)),
            key[number] > last[number],
        )
        for number in range(len(key))
    ]
    return or_(*alternatives)


@lru_cache(maxsize=256)
def key_walk_by_dives(table: Table, *, from_start: bool) -> Select[Any]:
    """Return a SELECT as :func:`key_walk` does, for SQLite, which has no loose index scan.

    It finds the head of each key by one step in the index from the head of the key before.
    """
    first, following, before = (table.alias(name) for name in ("first", "following", "before"))
    start = select(first.c.id).where(
        _is_open(first),
        *([] if from_start else [_row(first, table) > _parameters(table)]),
    )
    heads = select(
        start.order_by(*_in_order(first, table)).limit(1).scalar_subquery().label("id"),
        literal(1).label("number"),
    ).cte("heads", recursive=True)
    step = (
        select(following.c.id)
        .where(
            before.c.id == heads.c.id,
            _is_open(following),
            _row(following, table) > _row(before, table),
        )
        .order_by(*_in_order(following, table))
        .limit(1)
        .correlate(heads)
        .scalar_subquery()
    )
    heads = heads.union_all(
        select(step, heads.c.number + 1).where(
            heads.c.id.is_not(null()), heads.c.number < bindparam("_limit")
        )
    )
    return (
        select(*_head_columns(table), *_columns(table, table))
        .join(heads, heads.c.id == table.c.id)
        .order_by(heads.c.number)
    )


def _row(source: FromClause, table: Table) -> ColumnElement[Any]:
    key = _columns(source, table)
    return key[0] if len(key) == 1 else tuple_(*key)


def _parameters(table: Table) -> ColumnElement[Any]:
    last: list[Any] = [
        bindparam(f"_after_{number}", type_=one.type)
        for number, one in enumerate(order_columns(table))
    ]
    return last[0] if len(last) == 1 else tuple_(*last)


@lru_cache(maxsize=256)
def followers(table: Table) -> Select[Any]:
    """Return the SELECT of the heads of those keys that the rows of ``_ids`` have."""
    found = _followers(table)
    return select(*_head_columns(table), *_columns(table, table)).join(
        found, found.c.id == table.c.id
    )


def _followers(table: Table) -> Subquery:
    settled = table.alias("settled")
    ids = (
        select(_first_of_key(table, settled).label("id"))
        .where(settled.c.id.in_(bindparam("_ids", expanding=True)))
        .distinct()
    )
    return by_index(ids, settled, _id_index(table)).subquery("found")


def lock_followers(table: Table, selecting: Select[Any]) -> Select[Any]:
    """Return a SELECT as :func:`lock_due` does, of the heads of those keys that ``_ids`` have."""
    found = _followers(table)
    return _lock_due(table, selecting.join(found, found.c.id == table.c.id))


def lock_due(table: Table, selecting: Select[Any]) -> Select[Any]:
    """Return a SELECT that locks those of ``_ids`` that are due and that nobody has locked.

    Those of a lower priority come first.

    :param selecting: selects what is to be known of the rows.
    """
    return _lock_due(table, selecting.where(id_condition(table)))


def _lock_due(table: Table, selecting: Select[Any]) -> Select[Any]:
    due = unindexed(table.c.time_next) <= clock.database_now()
    statement = selecting.where(unindexed(table.c.time_acked).is_(None), due)
    if "priority" in table.c:
        statement = statement.order_by(table.c.priority)
    statement = statement.with_for_update(skip_locked=True)
    return by_index(statement, table, _id_index(table))


@lru_cache(maxsize=256)
def first_of(table: Table) -> Select[Any]:
    """Return the SELECT that finds which of ``_ids`` are the first open messages of their keys."""
    statement = select(table.c.id).where(id_condition(table), is_first(table))
    return by_index(statement, table, _id_index(table))


def _id_index(table: Table) -> str:
    return LAYOUTS[queue_options(table).layout].id_index
