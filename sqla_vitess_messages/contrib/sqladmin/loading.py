"""Load messages to show, also those with a payload that can't be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session, attributes, load_only

from ...mixin import MessageQueueMixin
from ...rows.loading import Portions, load_separately
from ...rows.reasons import describe_error
from .columns import payload_names

__all__ = ["load_messages"]

Model = type[MessageQueueMixin]


def load_messages(model: Model, session: Session, ids: Sequence[int]) -> list[Any]:
    """Return messages in the order of their ids; those that are gone are left out.

    Of one that can't be loaded, an error takes the place of the payload.
    """

    def load(some: Sequence[int]) -> Sequence[MessageQueueMixin]:
        return session.scalars(select(model).where(model.id.in_(some))).all()

    loaded, failed = load_separately(load, ids, Portions())
    for message_id, error in failed:
        loaded += _without_payload(model, session, message_id, error)
    places = {message_id: place for place, message_id in enumerate(ids)}
    return sorted(loaded, key=lambda message: places[message.id])


def _without_payload(
    model: Model, session: Session, message_id: int, error: Exception
) -> Sequence[MessageQueueMixin]:
    payload = payload_names(model)
    others = [
        getattr(model, attribute.key)
        for attribute in inspect(model).column_attrs
        if attribute.key not in payload
    ]
    session.rollback()  # The statement that failed may have ended the transaction.
    finding = select(model).options(load_only(*others)).where(model.id == message_id)
    found = session.scalars(finding).all()
    for message in found:
        for name in payload:
            text = f"can't be loaded: {describe_error(error)}"
            attributes.set_committed_value(message, name, text)
    return found
