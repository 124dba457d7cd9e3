"""How users enqueue messages of which one may exist already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from .rows.enqueue_unique import IfExists, enqueue_messages
from .rows.message import Message
from .rows.settle import SessionOrConnection

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EnqueueableQueue"]


class EnqueueableQueue(Message):
    """The methods of every queue by which messages are enqueued other than by a session.

    :class:`.MessageQueueMixin` inherits them.
    """

    @classmethod
    def enqueue(
        cls, session: SessionOrConnection, message: Self, *, if_exists: IfExists = "raise"
    ) -> bool:
        """Enqueue a message of a queue with ``unique_by``, in the caller's transaction.

        The message is inserted at once, and doesn't become part of the session. With an
        AsyncSession, use ``await session.run_sync(lambda s: Model.enqueue(s, message))``.

        :param session: a Session or Connection.
        :param message: a new one. Relationships that were set on it don't count, only columns.
        :param if_exists: what to do if the queue has an unsettled message of the same key.
            ``"raise"``: an error. ``"skip"``: nothing. ``"replace"``: that message gets payload,
            priority and delivery time of this one; if it is being handled, then it is delivered
            again with them afterwards.
        :return: whether it was enqueued; True also if it has replaced another.
        :raises AlreadyEnqueued: when there is such a message, unless it is to be skipped or
            replaced.
        :raises InvalidArgument: when it was enqueued before, or when the queue has no key.
        """
        return enqueue_messages(cls, session, [message], if_exists) == 1

    @classmethod
    def enqueue_all(
        cls,
        session: SessionOrConnection,
        messages: Iterable[Self],
        *,
        if_exists: IfExists = "raise",
    ) -> int:
        """Enqueue many messages by a few statements for each 500.

        :param if_exists: as of :meth:`enqueue`. Of several messages of one key, ``"skip"`` enqueues
            the first, and ``"replace"`` the last.
        :return: how many were enqueued, or have replaced others.
        :raises AlreadyEnqueued: when there are such messages, or two have the same key. Then roll
            the transaction back, or of the messages before these, some are enqueued.
        """
        return enqueue_messages(cls, session, messages, if_exists)
