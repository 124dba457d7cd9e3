"""Enqueue messages unless, or in place of, unsettled ones of the same key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from sqlalchemy import (
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    Insert,
    Select,
    Table,
    bindparam,
    delete,
    insert,
    select,
    tuple_,
)
from sqlalchemy.orm import Mapper, Session, class_mapper, scoped_session

from ..errors import AlreadyEnqueued, InvalidArgument, InvalidArgumentType
from ..shown import shown
from ..table.order import SEQ, is_ordered
from ..table.unique import NEXT_DUE, REVISION, UNIQUE_INDEX, UNSETTLED, unique_columns
from . import enqueue
from .local_notify import notify_at_commit
from .message import (
    Message,
    enqueued_as,
    is_enqueued,
    note_enqueued,
    queue_table,
)
from .places import check_place, next_place
from .queries import by_index, chunks, shard_columns, shard_conditions
from .settle import SessionOrConnection, connection_of, refuse_autocommit
from .states import is_replaceable
from .upsert import InsertOrReplace, InsertOrSkip

__all__ = ["IfExists", "check_if_exists", "enqueue_messages", "enqueue_mixed"]

IfExists = Literal["raise", "skip", "replace"]
"""What to do about an unsettled message of the same key."""

Row = dict[str, Any]
"""The values of a message, by the keys of its table's columns."""


def check_if_exists(if_exists: str) -> None:
    """Check the argument ``if_exists``.

    :raises InvalidArgument: for another value.
    """
    if if_exists not in get_args(IfExists):
        raise InvalidArgument(f"if_exists={shown(if_exists)}: expected one of {get_args(IfExists)}")


def _check_key(model: type[Message], if_exists: IfExists) -> None:
    if if_exists != "raise" and not is_replaceable(queue_table(model)):
        raise InvalidArgument(
            f"if_exists={if_exists!r}: {model.__name__} has no key by which a message exists; set "
            "unique_by in its QueueOptions"
        )


def enqueue_messages(
    model: type[Message],
    session: SessionOrConnection,
    messages: Iterable[Message],
    if_exists: IfExists,
) -> int:
    """Enqueue messages; see :meth:`.EnqueueableQueue.enqueue_all`."""
    check_if_exists(if_exists)
    _check_key(model, if_exists)
    given = list(messages)
    for message in given:
        _check(model, message)
    if isinstance(session, (Session, scoped_session)) and session.autoflush:
        session.flush()  # As before a query: the messages may refer to what is pending.
    connection = connection_of(model, session)
    refuse_autocommit(connection, "a message")
    table = queue_table(model)
    rows = _distinct(table, [_row(model, message) for message in given], if_exists)
    inserted: set[int] = set()
    for chunk in chunks(rows):
        inserted |= _insert(connection, table, chunk, if_exists)
    for message in given:
        note_enqueued(message, is_inserted=message.id in inserted)
    done = len(rows) if if_exists == "replace" else len(inserted)
    if done:
        notify_at_commit(connection, table)
    return done


def enqueue_mixed(
    session: SessionOrConnection, messages: Iterable[Message], if_exists: IfExists
) -> None:
    """Enqueue messages of several queues; see :func:`enqueue_messages`."""
    by_model: dict[type[Message], list[Message]] = defaultdict(list)
    for message in messages:
        by_model[type(message)].append(message)
    for model, of_model in by_model.items():
        enqueue_messages(model, session, of_model, if_exists)


def _check(model: type[Message], message: object) -> None:
    if not isinstance(message, model):
        raise InvalidArgumentType(f"messages: {shown(message)} is not a {model.__name__}")
    if is_enqueued(message):
        raise InvalidArgument(f"messages: {shown(message)} is enqueued already; make another one")
    if enqueued_as(message) is not None:
        message.id = enqueue.random_id()  # What was replaced or skipped isn't this message.


def _row(model: type[Message], message: Message) -> Row:
    """Return the values of a message, without those that its table has defaults for.

    What is None, or was not set, is stored as by the ORM's INSERT.
    """
    table, values = queue_table(model), message.__dict__
    enqueue.fill(values, table.c)
    enqueue.check(values, model)
    row: Row = {}
    for attribute, column in _inserted(class_mapper(model), table):
        value = values.get(attribute)
        if isinstance(value, ClauseElement):
            raise InvalidArgument(
                f"{model.__name__}.{attribute}={shown(value)}: an SQL expression can't be "
                "enqueued like this; use its value, or session.add"
            )
        if value is not None or _stores_none(column, is_set=attribute in values):
            row[column.key] = value
    if is_ordered(table):  # Before the rows are put into the order of their keys.
        row[SEQ] = next_place() if row.get(SEQ) is None else row[SEQ]
        check_place(row[SEQ], model)
    for column in unique_columns(table):
        if row.get(column.key) is None:
            row[column.key] = _default(model, column, row)
    return row


def _stores_none(column: Column[Any], *, is_set: bool) -> bool:
    """Return whether None is among the values of an INSERT.

    It is a value of types such as JSON, whose column is NULL only if it is left out. For others it
    stands for the column's default, if there is one.
    """
    if column.type.should_evaluate_none:
        return is_set
    return column.default is None and column.server_default is None


class _ContextOfKey:
    """What the default of a column in the key gets in place of the INSERT's execution context.

    :param row: the values that the message has so far.
    """

    def __init__(self, column: Column[Any], row: Row) -> None:
        self._column = column
        self._row = row

    def get_current_parameters(self, *_isolate: bool, **_options: bool) -> Row:
        return self._row.copy()

    def __getattr__(self, name: str) -> Any:
        raise InvalidArgument(
            f"{self._column}: its default uses {name!r} of the INSERT's context, but as a part of "
            "the key in unique_by it has to be known before; set it on each message"
        )


def _default(model: type[Message], column: Column[Any], row: Row) -> Any:
    """Return the default of a column of the key, which has to be known before the INSERT."""
    default: Any = column.default
    if default is not None and default.is_scalar:
        return default.arg
    if default is not None and default.is_callable:
        return default.arg(_ContextOfKey(column, row))
    raise InvalidArgument(
        f"{model.__name__}.{column.key}=None: the queue's unique_by names it, so every message "
        "needs one"
    )


@lru_cache(maxsize=256)
def _inserted(mapper: Mapper[Any], table: Table) -> list[tuple[str, Column[Any]]]:
    """Return the attributes of a message's values, and their columns."""
    left_out = {REVISION, NEXT_DUE} if is_replaceable(table) else set()
    found: list[tuple[str, Column[Any]]] = []
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        if not isinstance(column, Column) or column.table is not table:
            continue
        if column.computed is None and column.name not in left_out:
            found.append((attribute.key, column))
    return found


def _distinct(table: Table, rows: list[Row], if_exists: IfExists) -> list[Row]:
    """Return one row for each key, in an order of keys that all producers have.

    Two that write the same keys in different orders would wait for each other.
    """
    columns = [column.key for column in unique_columns(table)]
    if not columns:
        return rows
    by_key: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row.get(name) for name in columns)
        if key in by_key and if_exists == "raise":
            raise AlreadyEnqueued(f"messages: two of them have the key {_shown_key(columns, key)}")
        if if_exists == "replace" or key not in by_key:
            by_key[key] = row
    return [by_key[key] for key in sorted(by_key, key=repr)]


def _insert(
    connection: Connection, table: Table, rows: Sequence[Row], if_exists: IfExists
) -> set[int]:
    """Insert rows of different keys, and return the ids of those that exist now."""
    if not is_replaceable(table):
        _execute(connection, insert(table), rows)
        return {row["id"] for row in rows}
    statement = InsertOrReplace(table) if if_exists == "replace" else InsertOrSkip(table)
    _execute(connection, statement, rows)
    found = _find_unsettled(connection, table, rows)
    inserted = [row for row in rows if row["id"] in found]
    existing = [row for row in rows if row["id"] not in found]
    if len(found) < len(rows):
        _raise_other_conflicts(connection, table, existing)
    if if_exists == "raise" and existing:
        _delete(connection, table, inserted)
        columns = [column.key for column in unique_columns(table)]
        keys = [tuple(row[name] for name in columns) for row in existing]
        shown_keys = "; ".join(_shown_key(columns, key) for key in keys[:10])
        more = "" if len(keys) <= 10 else f", and {len(keys) - 10} more"
        raise AlreadyEnqueued(
            f"queue {table.name!r} has an unsettled message with {shown_keys}{more}; use "
            "if_exists='skip' or 'replace', or wait until it is settled",
            keys=keys,
        )
    return {row["id"] for row in inserted}


def _execute(connection: Connection, statement: Insert, rows: Sequence[Row]) -> None:
    """Insert rows by one statement for those that have values for the same columns."""
    by_columns: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        by_columns[tuple(row)].append(row)
    for some in by_columns.values():
        connection.execute(statement, some)


def _find_unsettled(connection: Connection, table: Table, rows: Sequence[Row]) -> set[int]:
    """Return the ids of the unsettled messages that have the keys of rows."""
    parameters: dict[str, Any] = {
        f"_{column.name}s": list(dict.fromkeys(row[column.key] for row in rows))
        for column in shard_columns(table)
    }
    columns = [column.key for column in unique_columns(table)]
    keys = [tuple(row[name] for name in columns) for row in rows]
    parameters["_keys"] = keys if len(columns) > 1 else [key for [key] in keys]
    return set(connection.scalars(_select_unsettled(table), parameters))


@lru_cache(maxsize=256)
def _select_unsettled(table: Table) -> Select[Any]:
    """Return the SELECT of unsettled messages that have one of the keys ``_keys``.

    It locks them, which the INSERT has done: else a transaction that has begun earlier would not
    see them all.
    """
    columns = unique_columns(table)
    key: ColumnElement[Any] = columns[0] if len(columns) == 1 else tuple_(*columns)
    unsettled = (
        select(table.c.id)
        .where(
            key.in_(bindparam("_keys", expanding=True)),
            table.c[UNSETTLED] == 1,
            *shard_conditions(table),
        )
        .with_for_update()
    )
    return by_index(unsettled, table, UNIQUE_INDEX)


def _raise_other_conflicts(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that were not for their key, but for another unique index of the table.

    :raises sqlalchemy.exc.IntegrityError: if there are any.
    """
    for row in rows:
        if not _find_unsettled(connection, table, [row]):
            connection.execute(insert(table), row)


def _delete(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Delete the other messages of a chunk, so that none of it is enqueued after an error."""
    for some in chunks([row["id"] for row in rows]):
        connection.execute(delete(table).where(table.c.id.in_(some)))


def _shown_key(columns: Sequence[str], key: Sequence[object]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in zip(columns, key, strict=True))


def _shown(value: object) -> str:
    """Return a text for a value of a key; of bytes, which :func:`shown` hides, as of any text."""
    return f"bytes.fromhex({shown(value.hex())})" if isinstance(value, bytes) else shown(value)
