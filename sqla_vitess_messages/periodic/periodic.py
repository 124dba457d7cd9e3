"""A message that is enqueued again and again.

.. code-block:: python

    Periodic("nightly", "0 3 * * *", lambda tick: Cleanup(day=tick.date()), timezone="Europe/Paris")
    Periodic("poll", timedelta(minutes=5), lambda tick: Poll())
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from .. import clock
from ..arguments import check_count, check_function
from ..errors import InvalidArgument, InvalidArgumentType
from ..rows.enqueue_unique import IfExists, check_if_exists
from ..shown import shown
from ..table.ticks import MAX_NAME, use_ticks_table
from ..topics.topic import Emitted
from .schedules import Cron, Interval, Schedule, latest

__all__ = ["Periodic"]

MIN_INTERVAL = 0.1
"""Seconds between two ticks, at least: each is a transaction."""


class Periodic:
    """A message that is enqueued at each time of a schedule: at each tick, exactly once.

    That holds for all processes that schedule it, as long as they use the same name for it and
    the same database. See :class:`.Scheduler`.

    :param name: identifies it in the database.
    :param schedule: a cron expression, such as ``"0 3 * * *"``, or a timedelta between two ticks.
        The ticks of an interval are its multiples since 1970 in UTC, whenever it is started.
    :param factory: called with the tick, an aware datetime. Returns a message, an event of a topic,
        several of them, or None. They commit together with the note that the tick is done.
    :param timezone: of the cron expression and of the ticks: the name of a time zone, or a tzinfo.
    :param catch_up: seconds, or a timedelta. A tick that was missed because nobody scheduled is
        made up for if it isn't older than this, and of several the last one only.
    :param if_exists: as of :meth:`.EnqueueableQueue.enqueue`, for messages of queues with
        ``unique_by``. With ``"skip"``, none is enqueued as long as the one before isn't settled.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    def __init__(
        self,
        name: str,
        schedule: str | timedelta,
        factory: Callable[[datetime], Emitted],
        *,
        timezone: str | tzinfo = UTC,
        catch_up: float | timedelta = timedelta(hours=1),
        if_exists: IfExists = "raise",
    ) -> None:
        if not isinstance(name, str):
            raise InvalidArgumentType(f"name={shown(name)}: expected a str")
        if not 1 <= len(name) <= MAX_NAME:
            raise InvalidArgument(f"name={shown(name)}: expected 1 to {MAX_NAME} characters")
        check_function("factory", factory)
        self.name = name
        self.timezone = _time_zone(timezone)
        self._schedule = _schedule(schedule, self.timezone)
        self._factory = factory
        self._catch_up = timedelta(seconds=clock.to_seconds(catch_up, "catch_up"))
        check_if_exists(if_exists)
        self._if_exists = if_exists
        use_ticks_table()

    def __repr__(self) -> str:
        return f"<Periodic {self.name!r}>"

    def next(self, n: int = 1, after: datetime | None = None) -> list[datetime]:
        """Return the coming ticks, in the time zone.

        :param n: how many. There are fewer if the schedule has no more within 50 years.
        :param after: an aware datetime. Default: now.
        :raises InvalidArgument: when an argument has a value that can't work.
        """
        check_count("n", n)
        nanoseconds = clock.now() if after is None else clock.from_datetime(after, "after")
        time: datetime | None = clock.to_datetime(nanoseconds)
        ticks: list[datetime] = []
        while len(ticks) < n and time is not None:
            time = self._schedule.next(time)
            if time is not None:
                ticks.append(time.astimezone(self.timezone))
        return ticks

    @property
    def _id(self) -> int:
        """What identifies it in the database."""
        digest = hashlib.sha256(self.name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def _next(self, after: datetime) -> datetime | None:
        return self._schedule.next(after)

    def _latest(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last tick after a time, up to another one."""
        return latest(self._schedule.next, after, until)

    def _make(self, tick: datetime) -> Emitted:
        return self._factory(tick.astimezone(self.timezone))


def _time_zone(timezone: str | tzinfo) -> tzinfo:
    if isinstance(timezone, tzinfo):
        return timezone
    if not isinstance(timezone, str):
        raise InvalidArgumentType(
            f"timezone={shown(timezone)}: expected a name such as 'Europe/Berlin', or a tzinfo"
        )
    try:
        return ZoneInfo(timezone)
    except (LookupError, ValueError, OSError) as error:
        raise InvalidArgument(
            f"timezone={shown(timezone)}: there is no such time zone; expected a name such as "
            "'Europe/Berlin'. Where the system has no time zones, install the package tzdata"
        ) from error


def _schedule(schedule: str | timedelta, timezone: tzinfo) -> Schedule:
    if isinstance(schedule, timedelta):
        clock.to_seconds(schedule, "schedule", minimum=MIN_INTERVAL)
        return Interval(schedule)
    if not isinstance(schedule, str):
        raise InvalidArgumentType(
            f"schedule={shown(schedule)}: expected a cron expression or a timedelta"
        )
    return Cron(schedule, timezone)
