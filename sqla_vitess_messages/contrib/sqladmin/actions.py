"""What can be done with the messages of a queue: the selected ones, or all that match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, load_only

from ...mixin import MessageQueueMixin
from ...rows import states
from ...rows.message import queue_table
from ...rows.queries import CHUNK
from ...rows.transient import retry_transaction

__all__ = ["ACTIONS", "Action", "apply", "count"]

Model = type[MessageQueueMixin]


@dataclass(frozen=True)
class Action:
    """An action.

    :param label: on its button.
    :param done: what was done, for the number of messages.
    :param suits: the condition that a message can have this done.
    :param run: does it in a session, and returns for how many messages.
    :param explanation: for the confirmation.
    :param is_final: whether the messages are gone then.
    """

    label: str
    done: str
    suits: Callable[[Model], ColumnElement[bool]]
    run: Callable[[Model, Session, Sequence[Any]], int]
    explanation: str
    is_final: bool = False


def _purge(model: Model, session: Session, messages: Sequence[MessageQueueMixin]) -> int:
    ids = {"_ids": [message.id for message in messages]}
    deleting = states.delete_dead(queue_table(model))
    return session.connection(bind_arguments={"mapper": model}).execute(deleting, ids).rowcount


ACTIONS = {
    "requeue": Action(
        label="Requeue",
        done="Requeued",
        suits=lambda model: states.is_dead(queue_table(model)),
        run=lambda model, session, messages: model.requeue(session, messages),
        explanation="Dead messages go out again, as if for the first time.",
    ),
    "run-now": Action(
        label="Run now",
        done="Due now:",
        suits=lambda model: (
            states.is_unsettled(queue_table(model)) & states.is_movable(queue_table(model))
        ),
        run=lambda model, session, messages: model.run_now(session, messages),
        explanation="Messages that wait go out at once. Those that somebody has stay as they are.",
    ),
    "cancel": Action(
        label="Cancel",
        done="Cancelled",
        suits=lambda model: states.is_unsettled(queue_table(model)),
        run=lambda model, session, messages: model.cancel(session, messages),
        explanation="Messages that aren't acked are deleted, those in work too: their handlers' "
        "effects are rolled back.",
        is_final=True,
    ),
    "purge": Action(
        label="Purge dead",
        done="Purged",
        suits=lambda model: states.is_dead(queue_table(model)),
        run=_purge,
        explanation="Dead messages are deleted.",
        is_final=True,
    ),
}


def count(model: Model, session: Session, action: Action, where: ColumnElement[bool]) -> int:
    """Return for how many of the messages that match a condition an action can be done."""
    table = queue_table(model)
    statement = select(func.count()).select_from(table).where(where, action.suits(model))
    return session.execute(statement).scalar_one()


def apply(model: Model, session: Session, action: Action, where: ColumnElement[bool]) -> int:
    """Do something with all messages that match a condition, and return with how many.

    Each portion of them commits by itself, as Vitess ends transactions that take long.
    """
    # Instances without payload, which nobody needs here.
    some = (
        select(model)
        .options(load_only(model.id))
        .where(where, action.suits(model))
        .order_by(model.id)
        .limit(CHUNK)
    )
    done, last = 0, 0

    def change_portion() -> tuple[int, int]:
        with session.begin():
            messages = session.scalars(some.where(model.id > last)).all()
            if not messages:
                return 0, 0
            return messages[-1].id, action.run(model, session, messages)

    while True:
        last, changed = retry_transaction(change_portion)
        if not last:
            return done
        done += changed
        session.expunge_all()
