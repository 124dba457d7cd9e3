"""A model that is a message queue.

.. code-block:: python

    class WelcomeEmail(MessageQueueMixin, Base):
        __tablename__ = "welcome_email"
        __queue__ = QueueOptions(ack_wait=30)
        address: Mapped[str] = mapped_column(String(255))

    session.add(WelcomeEmail(address="ada@example.com", deliver_in=60))
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import Connection, Table, event, inspect
from sqlalchemy.ext.hybrid import Comparator, hybrid_property
from sqlalchemy.orm import Mapped, Mapper, declared_attr, mapped_column
from sqlalchemy.orm.attributes import set_committed_value

from . import clock
from .changes import ChangeableQueue
from .enqueueing import EnqueueableQueue
from .errors import AlreadySettled, InvalidArgument, InvalidArgumentType, InvalidQueue
from .rows import defaults, enqueue, settle
from .rows.epochs import attempts
from .rows.hybrids import DueComparator, as_datetime
from .rows.lease import lease_of, leases_of
from .rows.message import NEXT_DUE_ATTRIBUTE, is_enqueued, map_next_due, queue_table
from .rows.pydantic import check_version
from .rows.settle import SessionOrConnection
from .shown import shown
from .table.build import make_queue_table
from .table.layouts import DEFAULT_PRIORITY, LAYOUTS, column_settings
from .table.options import OPTIONS_KEY, QueueOptions
from .table.order import OPEN, SEQ, add_order_columns, is_ordered
from .table.pauses import pause_table
from .table.unique import REVISION, UNMAPPED

__all__ = ["MessageQueueMixin"]

Q = TypeVar("Q", bound="MessageQueueMixin")

_FIRST = -2_000_000
"""The ``sort_order`` of the queue's first column, so that the payload's columns follow."""


def _column(name: str, **options: Any) -> Any:
    """Return an attribute that becomes a column, or None, when a class is mapped.

    The function has no annotation: one would make the attribute a field of a dataclass.
    """

    def column(cls):  # type: ignore[no-untyped-def]
        if "__table__" in vars(cls):
            raise InvalidQueue(_not_declarative(cls))
        layout = _options(cls).layout
        columns = LAYOUTS[layout].columns
        if name not in columns:
            return None
        settings = column_settings(name, layout)
        return mapped_column(
            name,
            settings.pop("type_"),
            sort_order=_FIRST + columns.index(name),
            info={OPTIONS_KEY: True},
            **settings,
            **options,
        )

    return declared_attr(column)


class MessageQueueMixin(ChangeableQueue, EnqueueableQueue):
    """Gives a declarative model the columns, keys, indexes and comment of a message table.

    Set :class:`QueueOptions` as ``__queue__``; without it the defaults hold. Payload columns of
    any type follow the queue's own. The constructor also takes ``deliver_at`` (an aware datetime),
    ``deliver_in`` (seconds or a timedelta), ``priority`` (-128 to 127, lower goes first) and
    ``id``, a dataclass's constructor and one of your own included.

    :raises InvalidQueue: when the class can't make a working queue, as soon as it is defined.
    """

    __queue__: ClassVar[QueueOptions] = QueueOptions()

    if TYPE_CHECKING:
        time_scheduled: Mapped[int]
        """When it was due first, in ns since 1970. Not in the minimal layout."""
        id: Mapped[int]
        """A random positive 63-bit integer, unless given."""
        time_next: Mapped[int | None]
        """When it is due (again), in ns since 1970; None once acked."""
        epoch: Mapped[int]
        """What identifies this delivery: it grows with each, and is never used again."""
        time_created: Mapped[int]
        """When it was made, in ns since 1970. Not in the minimal layout."""
        time_acked: Mapped[int | None]
        """When it was acked, in ns since 1970; None before."""
        priority: Mapped[int]
        """Lower goes out first, -128 to 127. Not in the classic layout."""
        revision: Mapped[int]
        """Identifies the payload, which may be replaced. Only in a queue with ``unique_by``."""
    else:
        time_scheduled = _column("time_scheduled", insert_default=defaults.default_scheduled)
        id = _column("id", insert_default=defaults.default_id)
        time_next = _column("time_next", insert_default=defaults.default_next)
        epoch = _column("epoch", insert_default=0)
        time_created = _column("time_created", insert_default=defaults.default_time)
        time_acked = _column("time_acked")
        priority = _column("priority", insert_default=DEFAULT_PRIORITY)

    @hybrid_property
    def deliver_at(self) -> datetime | None:
        """When the message goes out (again), in UTC; None once it is acked or dead. Also in SQL.

        Set it, or ``deliver_in``, before the message is enqueued.

        :raises InvalidArgument: when set to a datetime without a time zone.
        """
        return as_datetime(self.time_next)

    @deliver_at.inplace.setter
    def _set_deliver_at(self, value: Any) -> None:
        self._set_delivery_time(clock.from_datetime(value, "deliver_at"))

    @deliver_at.inplace.comparator
    @classmethod
    def _deliver_at_in_sql(cls) -> Comparator[datetime | None]:
        return DueComparator(cls)

    @property
    def deliver_in(self) -> timedelta | None:
        """How long until the message goes out, counted from now; None once it is acked or dead."""
        at: datetime | None = self.deliver_at
        return None if at is None else at - clock.to_datetime(clock.now())

    @deliver_in.setter
    def deliver_in(self, value: float | timedelta) -> None:
        delay = clock.to_nanoseconds(clock.to_seconds(value, "deliver_in"))
        self._set_delivery_time(clock.now() + delay)

    @property
    def attempts(self) -> int:
        """How often it was handed out before, since it was enqueued or requeued.

        A release before a handler got it doesn't count. That of a received message never changes.
        """
        lease = lease_of(self)
        return attempts(self.epoch) if lease is None else lease.attempts

    def ack(self, session: SessionOrConnection) -> None:
        """Settle the message in the caller's transaction: its work is done.

        While nobody has acked, an ack succeeds, even after the lease ran out.

        :param session: the Session or Connection of the transaction that has the effect.
        :raises AlreadySettled: when another holder acked first. Let it leave the transaction's
            block: the rollback is what makes the effect happen once.
        """
        settle.ack(type(self), session, leases_of(type(self), [self]))

    def fail(self, session: SessionOrConnection, reason: str | None = None) -> None:
        """Settle the message as dead in the caller's transaction: it is never delivered again.

        :param session: a Session or Connection.
        :param reason: logged, and kept in the column ``fail_reason`` if the model has one.
        :raises LeaseLost: when the lease is over: it ran out, or was used to settle.
        """
        settle.fail(type(self), session, leases_of(type(self), [self]), reason)

    def retry(
        self,
        session: SessionOrConnection,
        delay: float | timedelta | None = None,
        reason: str | None = None,
    ) -> None:
        """Give the message back in the caller's transaction, to be delivered again.

        :param session: a Session or Connection.
        :param delay: seconds or a timedelta from now. Default: the queue's backoff, doubled at each
            delivery, with jitter.
        :param reason: why it failed, which a model with :class:`.MessageFailuresMixin` keeps.
        :raises LeaseLost: when the lease is over: it ran out, or was used to settle.
        """
        settle.retry(type(self), session, leases_of(type(self), [self]), delay, reason)

    def extend(self, session: SessionOrConnection, seconds: float | timedelta) -> None:
        """Extend the lease, for work that takes longer than ``ack_wait``.

        :param session: a Session or Connection; the extension holds when it commits.
        :param seconds: until the lease ends, from now: more than 0 seconds, or a timedelta.
        :raises LeaseLost: when the lease is over: it ran out, or was used to settle.
        """
        settle.extend(type(self), session, leases_of(type(self), [self]), seconds)

    @classmethod
    def ack_all(cls: type[Q], session: SessionOrConnection, messages: Iterable[Q]) -> None:
        """Ack many messages by one statement for each 500.

        :raises AlreadySettled: when any of them was acked before: roll back, and none is.
        """
        settle.ack(cls, session, leases_of(cls, messages))

    @classmethod
    def fail_all(
        cls: type[Q], session: SessionOrConnection, messages: Iterable[Q], reason: str | None = None
    ) -> None:
        """Fail many messages by one statement for each 500 of the same epoch.

        :param reason: logged, and kept in the column ``fail_reason`` if the model has one.
        :raises LeaseLost: when the lease of any of them is over.
        """
        settle.fail(cls, session, leases_of(cls, messages), reason)

    @classmethod
    def retry_all(
        cls: type[Q],
        session: SessionOrConnection,
        messages: Iterable[Q],
        delay: float | timedelta | None = None,
        reason: str | None = None,
    ) -> None:
        """Retry many messages by one statement for each 500 of the same epoch.

        :param reason: why they failed, which a model with :class:`.MessageFailuresMixin` keeps.
        :raises LeaseLost: when the lease of any of them is over.
        """
        settle.retry(cls, session, leases_of(cls, messages), delay, reason)

    @classmethod
    def extend_all(
        cls: type[Q],
        session: SessionOrConnection,
        messages: Iterable[Q],
        seconds: float | timedelta,
    ) -> None:
        """Extend the leases of many messages by one statement for each 500 of the same epoch.

        :param seconds: more than 0 seconds, or a timedelta, from now.
        :raises LeaseLost: when the lease of any of them is over.
        """
        settle.extend(cls, session, leases_of(cls, messages), seconds)

    def _set_delivery_time(self, nanoseconds: int) -> None:
        if is_enqueued(self):
            raise InvalidArgument(
                "deliver_at and deliver_in are for messages that aren't enqueued yet; "
                "use message.retry(session, delay=...) for one that was received, and "
                f"{type(self).__name__}.reschedule(session, [message], ...) for one that waits"
            )
        self.time_next = nanoseconds
        if "time_scheduled" in type(self).__table__.c:
            self.time_scheduled = nanoseconds


_SET_BY_SETTLEMENTS = (
    "time_scheduled",
    "id",
    "time_next",
    "epoch",
    "time_created",
    "time_acked",
)
"""The columns that only deliveries and settlements change. A merge, for example, would write back
the values of a received message, which are those from before its delivery."""


@event.listens_for(MessageQueueMixin, "before_update", propagate=True)
def _keep_from_update(
    _mapper: Mapper[Any], _connection: Connection, message: MessageQueueMixin
) -> None:
    """Revert changes of the queue's own columns that a flush would write."""
    state = inspect(message)
    attributes = state.attrs
    options = type(message).__queue__
    added = [REVISION, NEXT_DUE_ATTRIBUTE] * (options.unique_by is not None)
    added += [SEQ] * (options.ordered_by is not None)
    for name in (*_SET_BY_SETTLEMENTS, *added):
        if name not in attributes:
            continue  # The layout has no such column.
        history = attributes[name].history
        if history.deleted:
            set_committed_value(message, name, history.deleted[0])
        elif history.added and state.session is not None:
            state.session.expire(message, [name])  # It was not loaded.


@event.listens_for(MessageQueueMixin, "before_delete", propagate=True)
def _ack_deleted(_mapper: Mapper[Any], connection: Connection, message: MessageQueueMixin) -> None:
    """Ack a received message that is deleted: if somebody else did first, this transaction ends."""
    if (lease := lease_of(message)) is not None:
        model = type(message)
        if settle.ack_unsettled(model, connection, [lease]):
            raise AlreadySettled(
                f"message {message.id} of {queue_table(model).name!r} must not be deleted: its "
                "payload was replaced, and has to be delivered. Ack it instead",
                message_ids=[message.id],
            )


_API = frozenset(
    name
    for cls in (ChangeableQueue, EnqueueableQueue, MessageQueueMixin)
    for name in vars(cls)
    if not name.startswith("__")
)


@event.listens_for(MessageQueueMixin, "instrument_class", propagate=True)
def _define_queue(mapper: Mapper[Any], cls: type[MessageQueueMixin]) -> None:
    """Check the class that is being mapped, and make its table a queue."""
    table = mapper.local_table
    if mapper.inherits is not None:
        raise InvalidQueue(
            f"{cls.__name__}: a queue is one table with one class; inherit from an abstract base "
            f"(__abstract__ = True) or a mixin instead of from {mapper.inherits.class_.__name__}"
        )
    if not isinstance(table, Table):
        raise InvalidQueue(f"{cls.__name__}: a queue is mapped to a Table, not to {shown(table)}")
    try:
        check_version(cls)
        _check_attributes(cls, table)
        add_order_columns(table, _options(cls), defaults.default_place)
        make_queue_table(table, _options(cls))
        if is_ordered(table):
            _check_place(cls)
        # The mapper looks at the table's columns after this event.
        unmapped = (OPEN, *UNMAPPED) if is_ordered(table) else UNMAPPED
        own = {name for name in unmapped if name in table.c and OPTIONS_KEY in table.c[name].info}
        mapper.exclude_properties = {*(mapper.exclude_properties or ()), *own}
        if _options(cls).pausable:
            pause_table(table)
    except InvalidQueue:
        table.metadata.remove(table)  # Else create_all would make a broken table.
        raise


@event.listens_for(MessageQueueMixin, "after_mapper_constructed", propagate=True)
def _complete_class(mapper: Mapper[Any], cls: type[MessageQueueMixin]) -> None:
    enqueue.extend_constructor(cls)
    map_next_due(mapper)


def _options(cls: type[MessageQueueMixin]) -> QueueOptions:
    options = cls.__queue__
    if not isinstance(options, QueueOptions):
        raise InvalidArgumentType(
            f"{cls.__name__}.__queue__={shown(options)}: expected QueueOptions"
        )
    return options


def _check_attributes(cls: type[MessageQueueMixin], table: Table) -> None:
    """Refuse attributes that hide what the library needs, and columns that aren't the mixin's."""
    # The class itself comes last, because declarative copies what it finds in a base to it.
    for base in (*cls.__mro__[1 : cls.__mro__.index(MessageQueueMixin)], cls):
        defined = vars(base)
        for name in sorted(_API & (defined.keys() | get_annotations(base).keys())):
            # Declarative puts the mapped attribute there, None where the layout has none.
            if base is cls and (defined.get(name) is None or _is_own(table, name)):
                continue
            if issubclass(base, MessageQueueMixin):
                raise InvalidQueue(
                    f"{base.__name__}.{name}: the name belongs to MessageQueueMixin; choose "
                    "another, or map the column under another attribute"
                )
            raise InvalidQueue(
                f"{cls.__name__}: {base.__name__} has {name!r} too, and comes before "
                "MessageQueueMixin among the bases; put MessageQueueMixin first"
            )
    if not all(_is_own(table, name) for name in LAYOUTS[_options(cls).layout].columns):
        raise InvalidQueue(_not_declarative(cls))


def _check_place(cls: type[MessageQueueMixin]) -> None:
    if hasattr(cls, SEQ):
        raise InvalidQueue(
            f"{cls.__name__}.{SEQ}: in a queue with ordered_by, the name belongs to the message's "
            "place; choose another"
        )


def _is_own(table: Table, column: str) -> bool:
    """Return whether a table has the column, as the mixin defines it."""
    return column in table.c and OPTIONS_KEY in table.c[column].info


def _not_declarative(cls: type[MessageQueueMixin]) -> str:
    return (
        f"{cls.__name__}: the columns of its table aren't MessageQueueMixin's; map the class "
        "declaratively, with __tablename__ and without a Table of your own"
    )


enqueue.listen(MessageQueueMixin)
