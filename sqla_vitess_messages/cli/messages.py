"""Read messages to show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, Select, select
from sqlalchemy.orm import Session

from .. import clock
from ..mixin import MessageQueueMixin
from ..rows.epochs import attempts
from ..rows.failures import FAILURES_KEY
from ..rows.loading import Portions, load_separately
from ..rows.message import queue_table
from ..rows.reasons import REASON_COLUMN, describe_error
from ..rows.states import DEAD
from ..table.options import OPTIONS_KEY
from .selection import mapped_columns
from .values import to_json

__all__ = ["ShownMessage", "find_messages", "is_payload"]

_TIMES = {
    "time_created": "created_at",
    "time_next": "deliver_at",
    "time_acked": "acked_at",
    "time_failed": "failed_at",
}
"""The columns of times, and what they are called."""


@dataclass(frozen=True)
class ShownMessage:
    """What is shown of a message."""

    queue: str
    id: int
    state: str | None = None
    attempts: int | None = None
    priority: int | None = None
    times: dict[str, datetime] = field(default_factory=dict)
    """In UTC, in the order of a message's life."""
    fail_reason: str | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why nothing but its id can be shown."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it: the id as text, because JavaScript has no such integers."""
        if self.error is not None:
            return {"queue": self.queue, "id": str(self.id), "error": self.error}
        return {
            "queue": self.queue,
            "id": str(self.id),
            "state": self.state,
            "attempts": self.attempts,
            "priority": self.priority,
            **{name: time.isoformat() for name, time in self.times.items()},
            "fail_reason": self.fail_reason,
            "payload": {name: to_json(value) for name, value in self.payload.items()},
        }


def is_payload(column: Column[Any]) -> bool:
    """Return whether a column is the user's, and not the queue's or of its failures."""
    return OPTIONS_KEY not in column.info and FAILURES_KEY not in column.info


def find_messages(
    session: Session, model: type[MessageQueueMixin], where: ColumnElement[bool], limit: int
) -> list[ShownMessage]:
    """Return messages, those that are due first at the beginning; of acked ones, the last acked.

    A row that can't be loaded is shown with the error.
    """
    table = queue_table(model)
    # vtgate can't order the rows of several shards by what it doesn't get.
    finding = select(table.c.id, table.c.time_next, table.c.time_acked).where(where)
    in_order = finding.order_by(table.c.time_next, table.c.time_acked.desc(), table.c.id)
    ids = list(session.scalars(in_order.limit(limit)))
    columns = mapped_columns(model)
    loading = select(
        *(column.label(f"column_{name}") for name, column in columns.items()),
        model.state.label("state"),
    )

    def load(some: Sequence[int]) -> Sequence[Row[Any]]:
        statement: Select[Any] = loading.where(table.c.id.in_(some))
        return session.execute(statement).all()

    rows, failed = load_separately(load, ids, Portions())
    messages = {message.id: message for message in (_shown(model, columns, row) for row in rows)}
    for message_id, error in failed:
        messages[message_id] = ShownMessage(table.name, message_id, error=describe_error(error))
    return [messages[message_id] for message_id in ids if message_id in messages]


def _shown(
    model: type[MessageQueueMixin], columns: dict[str, Column[Any]], row: Row[Any]
) -> ShownMessage:
    values = row._mapping
    own = {column.name: values[f"column_{name}"] for name, column in columns.items()}
    payload = {
        name: values[f"column_{name}"]
        for name, column in columns.items()
        if is_payload(column) and column.name != REASON_COLUMN
    }
    return ShownMessage(
        queue=queue_table(model).name,
        id=own["id"],
        state=values["state"],
        attempts=attempts(own["epoch"]),
        priority=own.get("priority"),
        times={
            label: clock.to_datetime(own[name])
            for name, label in _TIMES.items()
            if own.get(name) not in (None, DEAD)
        },
        fail_reason=own.get(REASON_COLUMN),
        payload=payload,
    )
