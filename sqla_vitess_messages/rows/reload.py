"""Load messages again that were received before: for another attempt to handle them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, class_mapper, lazyload, undefer
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import AlreadySettled, LeaseLost
from .lease import Lease, give_lease
from .message import Message, queue_table
from .own_session import OwnSession
from .queries import batch_parameters, id_condition, key_getter, shard_conditions
from .settle import settling_connection
from .states import is_replaceable

__all__ = ["load_again", "load_eager_relationships"]

M = TypeVar("M", bound=Message)

_EAGER = frozenset(("joined", "selectin", "subquery", "immediate", False))
"""The values of a relationship's ``lazy`` by which it is loaded together with its parent."""


def load_again(model: type[M], session: Session, leases: Sequence[Lease]) -> list[M]:
    """Load messages as the session's transaction sees them, each with its lease.

    :return: like those that a transport delivers: without a session, in the order of the leases.
    :raises AlreadySettled: when a message was acked, and perhaps deleted since.
    :raises LeaseLost: when its payload was replaced, so that it will be delivered once more.
    """
    connection = settling_connection(model, session)
    # Not by the session itself, whose criteria may hide rows.
    with OwnSession(connection) as loading:
        statement = _select(model, leases).options(lazyload("*"))
        found = {message.id: message for message in loading.scalars(statement)}
        loading.expunge_all()
    acked = [
        lease.message_id
        for lease in leases
        if (message := found.get(lease.message_id)) is None or message.time_acked is not None
    ]
    if acked:
        raise AlreadySettled(
            f"these messages of {queue_table(model).name!r} were acked before: {acked}",
            message_ids=acked,
        )
    messages = [found[lease.message_id] for lease in leases]
    _refuse_replaced(model, messages, leases)
    for message, lease in zip(messages, leases, strict=True):
        set_committed_value(message, "epoch", lease.epoch)
        give_lease(message, lease)
    return messages


def load_eager_relationships(
    model: type[M], session: Session, messages: Sequence[M], leases: Sequence[Lease]
) -> None:
    """Load the relationships of a session's messages that are mapped to be loaded with them.

    Transports leave relationships out. The others are loaded when they are used, which asyncio
    can't do by itself.

    :raises LeaseLost: as :func:`load_again` does, since this loads the payloads once more.
    """
    if any(relationship.lazy in _EAGER for relationship in class_mapper(model).relationships):
        statement = _select(model, leases).execution_options(populate_existing=True)
        session.scalars(statement).unique().all()
        _refuse_replaced(model, messages, leases)
        for message, lease in zip(messages, leases, strict=True):
            set_committed_value(message, "epoch", lease.epoch)


def _refuse_replaced(
    model: type[Message], messages: Sequence[Message], leases: Sequence[Lease]
) -> None:
    """Check that messages have the payloads that they were leased with.

    :raises LeaseLost: when others took their place, which will be delivered after this.
    """
    if not is_replaceable(queue_table(model)):
        return
    get_key = key_getter(class_mapper(model), queue_table(model))
    replaced = [
        lease.message_id
        for message, lease in zip(messages, leases, strict=True)
        if get_key(message.__dict__)[-1] != lease.key[-1]  # The revision.
    ]
    if replaced:
        raise LeaseLost(
            f"the payloads of these messages of {queue_table(model).name!r} were replaced: "
            f"{replaced}",
            message_ids=replaced,
        )


def _select(model: type[Message], leases: Sequence[Lease]) -> Select[Any]:
    table = queue_table(model)
    parameters = batch_parameters(table, [lease.key for lease in leases])
    conditions = (id_condition(table), *shard_conditions(table))
    return select(model).where(*conditions).params(**parameters).options(undefer("*"))
