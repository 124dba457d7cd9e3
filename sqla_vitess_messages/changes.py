"""What users can see and change of the messages that wait in a queue."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from sqlalchemy import URL, ColumnElement, Engine
from sqlalchemy.ext.hybrid import Comparator, hybrid_property
from sqlalchemy.orm import Session

from .rows import change, dead, pausing, waiting
from .rows.hybrids import StateComparator, as_datetime, state_of, time_column
from .rows.message import Message
from .rows.selection import MessagesOrWhere
from .rows.settle import SessionOrConnection
from .rows.stats import QueueStats, count

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ChangeableQueue"]


class ChangeableQueue(Message):
    """The attributes and methods of every queue by which users see and change what waits in it.

    :class:`.MessageQueueMixin` inherits them.
    """

    @hybrid_property
    def state(self) -> str:
        """``"ready"``, ``"scheduled"``, ``"leased"``, ``"acked"`` or ``"dead"``.

        With :class:`.MessageFailuresMixin` also ``"retrying"``: a message that waits for its retry
        counts as leased without it. Of an instance it follows from the values that are loaded, and
        from this process's clock. In SQL, as in ``where(Mail.state == "dead")``, it is by the
        database's clock, and the rows are found by an index.
        """
        return state_of(self)

    @state.inplace.comparator
    @classmethod
    def _state_in_sql(cls) -> Comparator[str]:
        return StateComparator(cls)

    @hybrid_property
    def created_at(self) -> datetime | None:
        """When the message was enqueued, in UTC. Also for conditions in SQL.

        The minimal layout keeps no such time: then it is None, and in SQL an error.
        """
        return as_datetime(getattr(self, "time_created", None))

    @created_at.inplace.expression
    @classmethod
    def _created_at_in_sql(cls) -> ColumnElement[datetime | None]:
        return time_column(cls, "time_created")

    @hybrid_property
    def acked_at(self) -> datetime | None:
        """When the message was acked, in UTC; None before. Also for conditions in SQL."""
        return as_datetime(getattr(self, "time_acked"))  # noqa: B009  # The mixin's column.

    @acked_at.inplace.expression
    @classmethod
    def _acked_at_in_sql(cls) -> ColumnElement[datetime | None]:
        return time_column(cls, "time_acked")

    @classmethod
    def stats(cls, session: SessionOrConnection) -> QueueStats:
        """Count the messages by their state, in one query.

        It reads one index; the whole table in a queue with ``unique_by``.

        :param session: a Session or Connection.
        """
        return count(cls, session)

    @classmethod
    def dead(cls, session: Session, limit: int = 100) -> list[Self]:
        """Return messages that have failed for good, as instances of the session.

        Those that can't be loaded are left out, with a warning in the log.

        :param limit: how many at most.
        """
        return dead.find(cls, session, limit)

    @classmethod
    def requeue(
        cls, session: SessionOrConnection, messages: MessagesOrWhere[Self] | None = None
    ) -> int:
        """Make dead messages ready to be delivered again, as if for the first time.

        :param session: a Session or Connection; they go out when it commits.
        :param messages: messages, ids, or a condition such as ``Mail.user_id == 7``; any that
            aren't dead are skipped. Default: all dead ones.
        :return: how many were requeued. Of a queue with ``unique_by``, those stay dead whose key an
            unsettled message has; of several dead ones of one key, one comes back.
            With ``ordered_by``, they come after all others of their keys, or with ``halt_on_dead``,
            at their old places.
        :raises InvalidArgument: for a condition on other tables, or a message without a row.
        :raises InvalidArgumentType: for anything else, such as True.
        """
        return dead.requeue(cls, session, messages)

    @classmethod
    def purge_dead(
        cls,
        session: SessionOrConnection,
        older_than: float | timedelta | None = None,
    ) -> int:
        """Delete dead messages.

        :param session: a Session or Connection.
        :param older_than: seconds, or a timedelta, since they were enqueued. Default: any age.
        :return: how many were deleted.
        :raises InvalidArgument: when ``older_than`` is given and the layout keeps no such time.
        """
        return dead.purge(cls, session, older_than)

    @classmethod
    def cancel(cls, session: SessionOrConnection, messages_or_where: MessagesOrWhere[Self]) -> int:
        """Delete messages that aren't acked: those that wait, the dead ones, and those in work.

        Whoever is handling one gets :class:`.AlreadySettled` from its ack, so that the effect of
        the handler is rolled back. A handler that cancels its own message in its own session has
        settled it.

        :param session: a Session or Connection; the messages are gone when it commits.
        :param messages_or_where: messages, ids, or a condition such as ``Mail.user_id == 7``.
        :return: how many were cancelled.
        :raises InvalidArgument: for a condition on other tables, or a message without a row.
        :raises InvalidArgumentType: for anything else, such as True or None.
        """
        return change.cancel(cls, session, messages_or_where)

    @classmethod
    def reschedule(
        cls,
        session: SessionOrConnection,
        messages_or_where: MessagesOrWhere[Self],
        *,
        deliver_at: datetime | None = None,
        deliver_in: float | timedelta | None = None,
    ) -> int:
        """Have messages delivered at another time: those that are ready, scheduled or retrying.

        Messages that somebody has, and acked and dead ones, stay as they are. Without
        :class:`.MessageFailuresMixin` or ``unique_by``, so do those that wait for a retry.

        :param session: a Session or Connection; the time holds when it commits.
        :param messages_or_where: messages, ids, or a condition such as ``Mail.user_id == 7``.
        :param deliver_at: a datetime with a time zone.
        :param deliver_in: seconds or a timedelta from now, by the database's clock.
        :return: how many were rescheduled.
        :raises InvalidArgument: unless one of the two is given, and as :meth:`cancel` does.
        :raises InvalidArgumentType: as :meth:`cancel` does.
        """
        return change.reschedule(cls, session, messages_or_where, deliver_at, deliver_in)

    @classmethod
    def run_now(cls, session: SessionOrConnection, messages_or_where: MessagesOrWhere[Self]) -> int:
        """Have messages delivered at once; see :meth:`reschedule`.

        ``Mail.run_now(session, Mail.state == "retrying")`` runs all retries.

        :return: how many will be.
        :raises InvalidArgument: as :meth:`cancel` does.
        :raises InvalidArgumentType: as :meth:`cancel` does.
        """
        return change.run_now(cls, session, messages_or_where)

    @classmethod
    def wait(
        cls,
        bind: str | URL | Engine,
        messages: Iterable[Self | int],
        timeout: float | timedelta | None = None,
    ) -> list[str]:
        """Wait until messages are acked, dead or gone, and return their states.

        The rows are polled on a connection of its own, less and less often, twice a second at
        least. So messages have to be committed before. For asyncio:
        :func:`sqla_vitess_messages.aio.wait`.

        :param bind: an Engine, or a database URL.
        :param messages: messages, or their ids.
        :param timeout: seconds to wait at most, or a timedelta. Default: as long as it takes.
        :return: ``"acked"``, ``"dead"`` or ``"purged"`` for each, in the order given. Purged is
            one that has no row, because it was acked long ago, cancelled or deleted.
        :raises TimeoutError: when some are neither after that time.
        :raises InvalidArgument: for a message without a row.
        :raises sqlalchemy.exc.DBAPIError: when the database fails, or is away for half a minute.
        """
        with waiting.engine_for(bind) as engine:
            return waiting.wait(cls, engine, messages, timeout, time.sleep)

    @classmethod
    def pause(cls, session: SessionOrConnection) -> None:
        """Pause the queue: within a second of the commit, nobody gets messages in any process.

        Those that wait in a subscriber are released. What was handed out before is finished, and
        enqueueing goes on. Pausing a paused queue changes nothing.

        :param session: a Session or Connection; the queue is paused when it commits.
        :raises InvalidArgument: without ``QueueOptions(pausable=True)``.
        """
        pausing.pause(cls, session)

    @classmethod
    def resume(cls, session: SessionOrConnection) -> None:
        """End the pause: within a second of the commit, messages are delivered again.

        :param session: a Session or Connection; the queue is resumed when it commits.
        :raises InvalidArgument: without ``QueueOptions(pausable=True)``.
        """
        pausing.resume(cls, session)

    @classmethod
    def is_paused(cls, session: SessionOrConnection) -> bool:
        """Return whether the queue is paused.

        :param session: a Session or Connection.
        :raises InvalidArgument: without ``QueueOptions(pausable=True)``.
        """
        return pausing.is_paused(cls, session)
