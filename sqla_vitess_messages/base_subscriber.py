"""What the subscriber for threads and the one for asyncio do in the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from . import clock
from .ddl import queue_table
from .deadlocks import despite_deadlocks
from .errors import InvalidArgument, InvalidArgumentType, LeaseLost, SubscriberClosed
from .events import Dead, Event
from .holdings import Holdings
from .mixin import MessageQueueMixin
from .transports.shards import check_shards

__all__ = ["LONGEST_BACKOFF", "BaseSubscriber"]

M = TypeVar("M", bound=MessageQueueMixin)

log = logging.getLogger(__name__)

LONGEST_BACKOFF = 2.0
"""Seconds between two attempts to reconnect, at most."""


class BaseSubscriber(Generic[M]):
    """Holds the messages of one queue, and tells of them."""

    is_open: bool

    def __init__(
        self,
        model: type[M],
        *,
        max_concurrency: int,
        poll_interval: float | timedelta,
        max_attempts: int | None,
        shards: Sequence[str] | None,
        on_event: Callable[[Event], object] | None,
    ) -> None:
        if not (isinstance(model, type) and issubclass(model, MessageQueueMixin)):
            raise InvalidArgumentType(f"model={model!r}: expected a class with MessageQueueMixin")
        check_count("max_concurrency", max_concurrency, 10_000)
        if max_attempts is not None:
            check_count("max_attempts", max_attempts, 2**31 - 1)
        if on_event is not None and not callable(on_event):
            raise InvalidArgumentType(f"on_event={on_event!r}: expected a callable")
        check_shards(shards)
        self.model = model
        self._queue = queue_table(model).name
        self._poll_interval = clock.to_seconds(poll_interval, "poll_interval", minimum=0.001)
        self._max_attempts = max_attempts
        self._shards = shards
        self._on_event = on_event
        self._holdings: Holdings[M] = Holdings(
            self._queue, max_concurrency, told=on_event is not None
        )
        self._worn: list[M] = []
        self._error: BaseException | None = None
        self._disconnected = False

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<{type(self).__name__} of {self._queue!r}, {state}>"

    def _closed(self) -> SubscriberClosed:
        return SubscriberClosed(f"the subscriber of {self._queue!r} is not open")

    def _accept(self, messages: list[M]) -> bool:
        """Take in what the transport delivered, apart from what has run out of attempts.

        :return: whether the subscriber has something to put right.
        """
        most = self._max_attempts
        if most is not None:
            self._worn += (message for message in messages if message.epoch >= most)
            messages = [message for message in messages if message.epoch < most]
        self._holdings.receive(messages)
        return self._is_to_put_right

    @property
    def _is_to_put_right(self) -> bool:
        return bool(self._worn) or self._holdings.is_to_give_back

    @property
    def _is_needed(self) -> bool:
        """Whether it pays to receive, or something is to be put right."""
        return self._is_to_put_right or self._holdings.wants_more

    def _let_die(self, worn: Sequence[M], engine: Engine) -> list[Event]:
        """Let messages die that have run out of attempts."""
        reason = f"handed out {self._max_attempts} times and never settled"

        def fail() -> None:
            with engine.begin() as connection:
                self.model.fail_all(connection, worn, reason)

        try:
            despite_deadlocks(fail)
        except LeaseLost:
            log.info("messages were handed out again meanwhile", extra={"queue": self._queue})
            return []
        return [Dead(self._queue, message.id, message.epoch) for message in worn]

    def _tell(self, events: Sequence[Event]) -> None:
        if self._on_event is None:
            return
        try:
            for happened in events:
                self._on_event(happened)
        except Exception:
            log.exception("on_event failed", extra={"queue": self._queue})

    def _note_not_given_back(self, count: int, error: Exception) -> None:
        log.warning(
            "%d messages could not be given back and come back after ack_wait: %s",
            count, type(error).__name__,
            extra={"queue": self._queue},
        )  # fmt: skip

    def _note_lost_connection(self, error: BaseException | None) -> str:
        """Log it, and return the reason."""
        reason = str(getattr(error, "orig", error))
        log.warning("the database failed, trying again: %s", reason, extra={"queue": self._queue})
        self._disconnected = True
        return reason


def lost_connection_errors(engine: Engine) -> tuple[type[BaseException], ...]:
    """Return the exceptions after which it pays to connect again.

    SQLAlchemy passes on some of the driver's errors as they are: those of isolation levels.
    """
    return DBAPIError, engine.dialect.loaded_dbapi.Error, OSError


def check_n(n: int) -> None:
    """Refuse a number of messages that nobody can ask for."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidArgument(f"n={n!r}: expected an int of at least 1")


def check_count(name: str, value: int, most: int) -> None:
    """Refuse what is no whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentType(f"{name}={value!r}: expected an int")
    if not 1 <= value <= most:
        raise InvalidArgument(f"{name}={value}: expected from 1 to {most}")
