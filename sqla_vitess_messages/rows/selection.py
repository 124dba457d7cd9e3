"""Which rows a call is about: messages, ids, or a condition, in portions that fit one statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    Alias,
    Boolean,
    ColumnElement,
    Connection,
    FromClause,
    Table,
    TableClause,
    inspect,
    select,
)
from sqlalchemy.orm import InstanceState, Session, class_mapper, scoped_session
from sqlalchemy.orm.attributes import QueryableAttribute
from sqlalchemy.types import NullType

from ..errors import InvalidArgument, InvalidArgumentType
from ..shown import shown
from .enqueue import MAX_ID
from .lease import lease_of
from .message import Message, enqueued_as, is_enqueued, queue_table
from .queries import (
    batch_parameters,
    chunks,
    id_condition,
    key_attributes,
    key_columns,
    shard_columns,
)
from .settle import SessionOrConnection, connection_of

__all__ = ["Keys", "MessagesOrWhere", "flush_and_connect", "ids_of", "parameters_of", "portions"]

M = TypeVar("M", bound=Message)

MessagesOrWhere = Iterable[M | int] | ColumnElement[bool] | QueryableAttribute[bool]
"""Messages of a queue, ids of them, or a condition on its columns."""

Keys = Mapping[int, tuple[Any, ...] | None]
"""The values of :func:`.queries.key_names` by a message's id; None where they aren't known."""

SELECTED = 5_000
"""Rows found by one SELECT. Vitess refuses a result of more than 10,000."""


def flush_and_connect(model: type[Message], session: SessionOrConnection) -> Connection:
    """Return the connection of the caller's transaction, which has all that was added to it."""
    if isinstance(session, (Session, scoped_session)) and session.autoflush:
        session.flush()
    return connection_of(model, session)


def portions(
    model: type[Message], connection: Connection, messages_or_where: Any
) -> Iterator[dict[str, Any]]:
    """Yield the parameters of :func:`.id_condition` and :func:`.shard_conditions`, some rows each.

    :raises InvalidArgument: for a condition about other tables, or a message without a row.
    :raises InvalidArgumentType: for anything but messages, ids or a condition.
    """
    if isinstance(messages_or_where, (ColumnElement, QueryableAttribute)):
        return _portions_where(queue_table(model), connection, messages_or_where)
    return parameters_of(model, connection, dict(ids_of(model, messages_or_where)))


def ids_of(model: type[Message], messages: Any) -> list[tuple[int, tuple[Any, ...] | None]]:
    """Return the ids of messages, in order, each with its key if that is known.

    :raises InvalidArgument: for a message without a row.
    :raises InvalidArgumentType: for anything but an iterable of messages and ids.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Iterable):
        raise InvalidArgumentType(
            f"messages={shown(messages)}: expected an iterable of {model.__name__} or of ids, or, "
            "to requeue, cancel, reschedule or run them, a condition such as "
            f"{model.__name__}.id == 7"
        )
    found: list[tuple[int, tuple[Any, ...] | None]] = []
    for message in messages:
        if isinstance(message, model):
            key = _known_key(message)
            found.append((_id_of(message) if key is None else key[0], key))
        elif isinstance(message, int) and not isinstance(message, bool):
            found.append((message, None))
        else:
            raise InvalidArgumentType(
                f"messages: {shown(message)} is neither a {model.__name__} nor the id of one"
            )
    return found


def _id_of(message: Message) -> int:
    """Return the id of a message, also of one whose session has expired it or is gone.

    :raises InvalidArgument: for a message without a row.
    """
    if not is_enqueued(message):
        enqueued = enqueued_as(message)
        if enqueued is not None and enqueued.is_inserted:
            return enqueued.message_id
        why = "was never enqueued, or its session isn't flushed yet"
        if enqueued is not None:
            why = (
                "has no row of its own: it was skipped, or has replaced another message of its "
                "key, by whose row both exist; name that one by a condition on the key"
            )
        raise InvalidArgument(f"messages: {shown(message)} {why}")
    state: InstanceState[Any] = inspect(message)
    names = [column.name for column in queue_table(type(message)).primary_key.columns]
    found: int = (state.identity or ())[names.index("id")]
    return found


def _known_key(message: Message) -> tuple[Any, ...] | None:
    """Return the values of :func:`.queries.key_names`; None unless all of them are loaded."""
    if (lease := lease_of(message)) is not None:
        return lease.key
    _id_of(message)
    model = type(message)
    values = message.__dict__
    key = [values.get(name) for name in key_attributes(class_mapper(model), queue_table(model))]
    return None if None in key else tuple(key)


def parameters_of(
    model: type[Message], connection: Connection, ids: Keys
) -> Iterator[dict[str, Any]]:
    """Yield the parameters for the rows of ids; see :func:`portions`.

    A row whose shard isn't known is queried for it in all shards. An id that a BIGINT can't hold
    is left out: it has no row.
    """
    table = queue_table(model)
    ids = {message_id: key for message_id, key in ids.items() if abs(message_id) <= MAX_ID}
    if not shard_columns(table):
        yield from ({"_ids": some} for some in chunks(ids))
        return
    finding = select(*key_columns(table)).where(id_condition(table))
    for some in chunks(ids.items()):
        keys = [key for _id, key in some if key is not None]
        if unknown := [message_id for message_id, key in some if key is None]:
            keys += [tuple(row) for row in connection.execute(finding, {"_ids": unknown})]
        if keys:
            yield batch_parameters(table, keys)


def _portions_where(table: Table, connection: Connection, where: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters for the rows that a condition is true of, as they are found."""
    _check_condition(table, where)
    last = 0
    some = select(*key_columns(table)).where(where).order_by(table.c.id).limit(SELECTED)
    while rows := connection.execute(some.where(table.c.id > last)).all():
        keys: list[Sequence[Any]] = [tuple(row) for row in rows]
        for chunk in chunks(keys):
            yield batch_parameters(table, chunk)  # type: ignore[arg-type]
        last = keys[-1][0]


def _check_condition(table: Table, where: Any) -> None:
    """Check that a condition is one, and about the rows of a table.

    :raises InvalidArgumentType: when it is another expression.
    :raises InvalidArgument: when it is about other tables too, which are then joined to each row.
    """
    element = where.expression if isinstance(where, QueryableAttribute) else where
    if not isinstance(element.type, (Boolean, NullType)):
        raise InvalidArgumentType(
            f"messages_or_where={where}: is no condition but of the type {element.type!r}"
        )
    froms = select(table.c.id).where(where).get_final_froms()
    if others := [_name(other) for other in froms if other is not table]:
        raise InvalidArgument(
            f"messages_or_where: the condition is about {', '.join(others)} too; write it about "
            f"{table.name!r} alone, with in_(select(...)) or exists()"
        )


def _name(rows: FromClause) -> str:
    if isinstance(rows, Alias):
        return f"an alias of {_name(rows.element)}"
    return str(rows) if isinstance(rows, TableClause) else "a subquery"
