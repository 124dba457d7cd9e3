"""Every error this library raises, all below :class:`MessageQueueError`."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.exc import DontWrapMixin

__all__ = [
    "AlreadyEnqueued",
    "AlreadySettled",
    "InvalidArgument",
    "InvalidArgumentType",
    "InvalidQueue",
    "LeaseLost",
    "MessageQueueError",
    "QueueNotFound",
    "SettlementError",
    "SubscriberClosed",
]


class MessageQueueError(DontWrapMixin, Exception):
    """The base of all errors of this library.

    One that is raised while a statement is executed isn't wrapped in SQLAlchemy's StatementError.
    """


class InvalidArgument(MessageQueueError, ValueError):
    """An argument has a value that can't work. The text names it, and what would be right."""


class InvalidArgumentType(MessageQueueError, TypeError):
    """An argument has a type that can't work. The text names it, and what would be right."""


class InvalidQueue(InvalidArgument):
    """A model, a table or a table comment doesn't make a working message queue.

    Raised before any DDL is sent, because one malformed message table stops the schema
    reloading of its whole Vitess tablet.
    """


class SettlementError(MessageQueueError):
    """Messages could not be settled.

    :param message_ids: the ids of the call's or statement's messages; not all of them need have
        failed.
    """

    def __init__(self, text: str = "", *, message_ids: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.message_ids = tuple(message_ids)
        """The ids of the call's or statement's messages; not all of them need have failed."""


class AlreadySettled(SettlementError):
    """Somebody else acked this message first, so its effect must not happen a second time.

    Let the exception leave the transaction's block: the rollback undoes the effect.
    """


class LeaseLost(SettlementError):
    """The message is no longer leased to this holder, who may not fail, retry or extend it."""


class AlreadyEnqueued(MessageQueueError):
    """A unique queue has an unsettled message of the same key.

    :param keys: the values of the columns of ``unique_by``, of each such message.
    """

    def __init__(self, text: str = "", *, keys: Sequence[tuple[object, ...]] = ()) -> None:
        super().__init__(text)
        self.keys = tuple(keys)
        """The values of the columns of ``unique_by``, of each such message."""


class QueueNotFound(MessageQueueError):
    """The database has no such table, or the table is not the queue that the model describes."""


class SubscriberClosed(MessageQueueError):
    """The subscriber isn't open."""
