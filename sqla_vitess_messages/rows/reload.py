"""Load messages again that were received before: for another attempt to handle them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, class_mapper, lazyload, undefer
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import AlreadySettled
from .lease import Lease, give_lease
from .message import Message, queue_table
from .queries import batch_parameters, id_condition, shard_conditions
from .settle import settling_connection

__all__ = ["load_again", "load_eager_relationships"]

M = TypeVar("M", bound=Message)

_EAGER = frozenset(("joined", "selectin", "subquery", "immediate", False))
"""The values of a relationship's ``lazy`` by which it is loaded together with its parent."""


def load_again(model: type[M], session: Session, leases: Sequence[Lease]) -> list[M]:
    """Load messages as the session's transaction sees them, each with its lease.

    :return: like those that a transport delivers: without a session, in the order of the leases.
    :raises AlreadySettled: when a row is gone: it was acked, and deleted since.
    """
    connection = settling_connection(model, session)
    # Not by the session itself, whose criteria may hide rows.
    with Session(connection, autoflush=False, join_transaction_mode="rollback_only") as loading:
        statement = _select(model, leases).options(lazyload("*"))
        found = {message.id: message for message in loading.scalars(statement)}
        loading.expunge_all()
    gone = [lease.message_id for lease in leases if lease.message_id not in found]
    if gone:
        raise AlreadySettled(
            f"these messages of {queue_table(model).name!r} were acked before, and deleted: {gone}",
            message_ids=gone,
        )
    messages = [found[lease.message_id] for lease in leases]
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
    """
    if any(relationship.lazy in _EAGER for relationship in class_mapper(model).relationships):
        statement = _select(model, leases).execution_options(populate_existing=True)
        session.scalars(statement).unique().all()
        for message, lease in zip(messages, leases, strict=True):
            set_committed_value(message, "epoch", lease.epoch)


def _select(model: type[Message], leases: Sequence[Lease]) -> Select[Any]:
    table = queue_table(model)
    parameters = batch_parameters(table, [lease.key for lease in leases])
    conditions = (id_condition(table), *shard_conditions(table))
    return select(model).where(*conditions).params(**parameters).options(undefer("*"))
