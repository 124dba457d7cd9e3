"""Publish events to all queues of a topic.

.. code-block:: python

    class OrderPlaced(Topic):
        order_id: Mapped[int]
        total: Mapped[Decimal]

    class BillOrder(OrderPlaced, MessageQueueMixin, Base):
        __tablename__ = "bill_order"

    class MailOrder(OrderPlaced, MessageQueueMixin, Base):
        __tablename__ = "mail_order"

    OrderPlaced.publish(session, order_id=1, total=Decimal("9.90"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Engine, inspect
from sqlalchemy.orm import MappedColumn
from sqlalchemy.util.concurrency import in_greenlet

from ..errors import InvalidArgument, InvalidArgumentType
from ..logs import get_logger
from ..mixin import MessageQueueMixin
from ..rows.enqueue_unique import IfExists, check_if_exists
from ..sessions import AnySession, add_messages, engine_for, engines_of, sync_session
from ..shown import shown
from .fields import Field, payload_fields

__all__ = ["Emitted", "Topic", "messages_of"]

log = get_logger(__name__)


class Topic:
    """A payload that several queues have in common. Each of them gets every event of the topic.

    A subclass declares columns, as a declarative mixin does. Queues inherit from it, each with a
    table of its own. A subclass that isn't mapped is a topic, too: its events also go to the queues
    of the topics that it inherits from.

    An instance of the topic itself is an event. It has the values as attributes, is no row of any
    table, and may be published, or returned from :func:`.on_commit` and :func:`.emits`.

    :param values: of the payload columns. One that is optional is None by default, or the column's
        default if that is a constant.
    :raises InvalidArgumentType: for an unknown value, or when one is missing.
    """

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        if isinstance(self, MessageQueueMixin) or hasattr(cls, "__mapper__"):
            super().__init__(**values)
            return
        fields = _fields(cls)
        if unknown := [name for name in values if name not in fields]:
            raise InvalidArgumentType(
                f"{cls.__name__}: has no {', '.join(unknown)}; its values are {', '.join(fields)}"
            )
        required = [name for name, field in fields.items() if field.is_required]
        if missing := [name for name in required if name not in values]:
            raise InvalidArgumentType(f"{cls.__name__}: {', '.join(missing)} missing")
        vars(self).update({name: field.default for name, field in fields.items()} | values)

    def __post_init__(self) -> None:
        """Give an event that is a dataclass its default values, as SQLAlchemy 2.0 doesn't.

        There, the default of a field is the object that :func:`mapped_column` has returned.
        """
        if _is_event(self):
            fields = _fields(type(self))
            for name, value in list(vars(self).items()):
                if isinstance(value, MappedColumn):
                    setattr(self, name, fields[name].default)

    @classmethod
    def wants(cls, event: Any) -> bool:  # noqa: ARG003
        """Return whether a queue gets an event. Queues override this.

        :param event: an instance of the topic that was published, or of one that inherits from it.
        """
        return True

    @classmethod
    def queues(cls) -> list[type[MessageQueueMixin]]:
        """Return the queues that get this topic's events, as far as their modules are imported."""
        _check_topic(cls)
        topics = [base for base in cls.__mro__ if issubclass(base, Topic) and base is not Topic]
        return list(dict.fromkeys(queue for topic in topics for queue in _own_queues(topic)))

    @classmethod
    def publish(
        cls,
        session: AnySession,
        /,
        *,
        deliver_at: datetime | None = None,
        deliver_in: float | timedelta | None = None,
        priority: int | None = None,
        if_exists: IfExists = "raise",
        **values: Any,
    ) -> list[Any]:
        """Enqueue a message in each of the topic's queues that wants the event.

        :param session: a Session or an AsyncSession. The messages are added to it, and commit with
            its transaction.
        :param deliver_at: when they go out, as an aware datetime.
        :param deliver_in: how long until they go out, in seconds or as a timedelta.
        :param priority: -128 to 127, lower goes first.
        :param if_exists: as of :meth:`.EnqueueableQueue.enqueue`, for queues with ``unique_by``.
            Otherwise than with the default, their messages are inserted at once: with an
            AsyncSession, inside of a function for ``AsyncSession.run_sync``.
        :param values: of the event.
        :return: the messages, one for each queue, those included that are skipped.
        :raises InvalidArgument: when a queue is on another engine than the session's data.
        :raises InvalidArgumentType: for an unknown value, or when one is missing.
        """
        _check_topic(cls)
        return cls.publish_all(
            session,
            [cls(**values)],
            deliver_at=deliver_at,
            deliver_in=deliver_in,
            priority=priority,
            if_exists=if_exists,
        )

    @classmethod
    def publish_all(
        cls,
        session: AnySession,
        events: Iterable[Topic],
        *,
        deliver_at: datetime | None = None,
        deliver_in: float | timedelta | None = None,
        priority: int | None = None,
        if_exists: IfExists = "raise",
    ) -> list[Any]:
        """Enqueue many events, by one INSERT for each queue.

        :param events: instances of this topic, or of topics that inherit from it.
        :return: the messages: those of the first event, then those of the second.
        :raises InvalidArgument: when a queue is on another engine than the session's data.
        :raises InvalidArgumentType: for what is no event of this topic.
        """
        _check_topic(cls)
        check_if_exists(if_exists)
        given = {"deliver_at": deliver_at, "deliver_in": deliver_in, "priority": priority}
        options = {name: value for name, value in given.items() if value is not None}
        messages: list[MessageQueueMixin] = []
        for event in events:
            if not (_is_event(event) and isinstance(event, cls)):
                raise InvalidArgumentType(
                    f"events: {shown(event)} is no event of {cls.__name__}; expected instances "
                    f"such as {cls.__name__}(...)"
                )
            messages += _messages(event, options)
        found = sync_session(session)
        engines = engines_of(found)
        for queue in dict.fromkeys(map(type, messages)):
            engines = {engine_for(found, queue, engines)}
        if if_exists != "raise":
            _check_may_insert(engines)
        add_messages(found, messages, if_exists)
        return messages


Emitted = MessageQueueMixin | Topic | Iterable[MessageQueueMixin | Topic] | None
"""What a function returns that emits: a message or an event, several, or none."""

_known_fields: WeakKeyDictionary[type[Topic], dict[str, Field]] = WeakKeyDictionary()

_without_queues: WeakSet[type[Topic]] = WeakSet()
"""The topics of which a warning has said that they have no queues."""


def messages_of(returned: Emitted, function: Callable[..., Any]) -> list[MessageQueueMixin]:
    """Return the messages that a function has returned, with those of the events among it.

    :raises InvalidArgumentType: when it returned anything else.
    """
    if returned is None:
        return []
    is_one = isinstance(returned, (MessageQueueMixin, Topic)) or not isinstance(returned, Iterable)
    messages: list[MessageQueueMixin] = []
    for one in [returned] if is_one else returned:  # type: ignore[union-attr]
        if isinstance(one, MessageQueueMixin):
            messages.append(one)
        elif isinstance(one, Topic) and _is_event(one):
            messages += _messages(one, {})
        else:
            raise InvalidArgumentType(
                f"{getattr(function, '__qualname__', function)} returned {shown(one)}: "
                "expected a message or an event, several, or None"
            )
    return messages


def _messages(event: Topic, options: dict[str, Any]) -> list[MessageQueueMixin]:
    """Return the messages of an event, for each queue that wants it.

    :param options: further arguments of their constructors.
    """
    topic = type(event)
    queues = topic.queues()
    if not queues and topic not in _without_queues:
        _without_queues.add(topic)
        log.warning(
            "the topic %s has no queues, so nobody gets its events; import the modules that define "
            "them", topic.__qualname__,
        )  # fmt: skip
    fields = _fields(topic)
    values = {
        name: getattr(event, name)
        for name, field in fields.items()
        if not (field.is_filled and getattr(event, name) is None)
    }
    return [
        queue(**{name: value for name, value in values.items() if hasattr(queue, name)}, **options)
        for queue in queues
        if queue.wants(event)  # type: ignore[attr-defined]
    ]


def _fields(topic: type[Topic]) -> dict[str, Field]:
    if topic not in _known_fields:
        _known_fields[topic] = payload_fields(topic, Topic)
    return _known_fields[topic]


def _own_queues(topic: type[Topic]) -> Iterator[type[MessageQueueMixin]]:
    """Yield the queues of a topic, but not those of topics that inherit from it."""
    for cls in topic.__subclasses__():
        if inspect(cls, raiseerr=False) is not None:
            if issubclass(cls, MessageQueueMixin):
                yield cls
        elif issubclass(cls, MessageQueueMixin) or hasattr(cls, "registry"):
            yield from _own_queues(cls)  # An abstract base.


def _is_event(value: object) -> bool:
    return isinstance(value, Topic) and not hasattr(type(value), "__mapper__")


def _check_may_insert(engines: Iterable[Engine]) -> None:
    """Check that an INSERT can be awaited.

    :raises InvalidArgument: for an asyncio driver outside of a greenlet.
    """
    if any(engine.dialect.is_async for engine in engines) and not in_greenlet():
        raise InvalidArgument(
            "if_exists: with an AsyncSession the messages have to be inserted inside of a function "
            "for run_sync: await session.run_sync(lambda session: ...publish(session, ...))"
        )


def _check_topic(cls: type[Topic]) -> None:
    """Check that events can be published to a class.

    :raises InvalidArgument: when it is a queue, or no topic at all.
    """
    if cls is Topic:
        raise InvalidArgument("Topic: publish to a subclass of it, which declares a payload")
    if issubclass(cls, MessageQueueMixin):
        topics = [base.__name__ for base in cls.__bases__ if issubclass(base, Topic)]
        raise InvalidArgument(
            f"{cls.__name__}: is one of the queues of {', '.join(topics)}; publish to that, or "
            "use session.add for a message to this queue alone"
        )
