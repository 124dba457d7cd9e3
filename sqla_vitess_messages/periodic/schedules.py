"""The times of a schedule: a cron expression in a time zone, or an interval.

:mod:`cronsim` evaluates the expressions, but only on a wall clock without a time zone: on its own,
it misses runs where the clock changes by half an hour, as on Lord Howe Island (cronsim 2.8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

from ..errors import InvalidArgument
from ..shown import shown

__all__ = ["Cron", "Interval", "Schedule", "latest"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)

_STRIDE = timedelta(days=7)
"""No time zone changes its offset twice within so short a time."""

_RESOLUTION = timedelta(milliseconds=1)
"""Shorter than any interval between two ticks."""


class Schedule(Protocol):
    """Times in order. All of them are in UTC here."""

    def next(self, after: datetime, /) -> datetime | None:
        """Return the first time after another one; None if there is none within 50 years."""
        ...


class Interval:
    """The multiples of an interval since 1970, so that all processes have the same."""

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval

    def next(self, after: datetime) -> datetime | None:
        return _EPOCH + self._interval * ((after - _EPOCH) // self._interval + 1)


class Cron:
    """The times of a cron expression on the wall clock of a time zone.

    Times at which the clock is set forward or back are handled as in Vixie cron: an expression
    whose minute or hour begins with ``*`` runs whenever the clock shows a time that it names, so
    that an hour that comes twice counts twice. Any other names fixed times: one that comes twice
    runs at the first, and one that is skipped runs right after.

    :raises InvalidArgument: when it is no cron expression, or names a time that never comes.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self._expression = expression
        self._zone = zone
        self._is_fixed = not any(field.startswith("*") for field in expression.split()[:-3])
        errors = _errors()
        try:
            first = self.next(datetime.now(UTC))
        except errors as error:
            raise InvalidArgument(
                f"schedule={shown(expression)}: expected a cron expression such as '0 3 * * *': "
                f"minute, hour, day, month, weekday ({error})"
            ) from error
        if first is None:
            raise InvalidArgument(f"schedule={shown(expression)}: names a time that never comes")

    def next(self, after: datetime) -> datetime | None:
        return self._next_fixed(after) if self._is_fixed else self._next_shown(after)

    def _next_fixed(self, after: datetime) -> datetime | None:
        for wall in self._walls(after.astimezone(self._zone).replace(tzinfo=None)):
            if (time := self._first_occurrence(wall)) > after:
                return time
        return None

    def _first_occurrence(self, wall: datetime) -> datetime:
        """Return when the clock first shows a time, or the first one after the gap that it is in.

        Clocks change at whole minutes.
        """
        while True:
            time = wall.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
            if time.astimezone(self._zone).replace(tzinfo=None) == wall:
                return time
            wall = wall.replace(second=0) + _MINUTE

    def _next_shown(self, after: datetime) -> datetime | None:
        """Return when the clock next shows one of the times, from one change of it to the next."""
        start = after.replace(microsecond=0)
        offset = self._offset(start)
        while (wall := next(self._walls(start.replace(tzinfo=None) + offset), None)) is not None:
            time = wall.replace(tzinfo=UTC) - offset
            change = self._change(start, time, offset)
            if change is None:
                return time
            start, offset = change - _SECOND, self._offset(change)
        return None

    def _change(self, start: datetime, end: datetime, offset: timedelta) -> datetime | None:
        """Return the first time after ``start``, up to ``end``, that has another offset."""
        while start < end:
            stop = min(start + _STRIDE, end)
            if self._offset(stop) == offset:
                start = stop
                continue
            while stop - start > _SECOND:
                middle = (start + (stop - start) / 2).replace(microsecond=0)
                if self._offset(middle) == offset:
                    start = middle
                else:
                    stop = middle
            return stop
        return None

    def _offset(self, time: datetime) -> timedelta:
        offset = time.astimezone(self._zone).utcoffset()
        assert offset is not None
        return offset

    def _walls(self, after: datetime) -> Iterator[datetime]:
        """Yield the times that the expression names, without a time zone."""
        from cronsim import CronSim

        return iter(CronSim(self._expression, after))


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors by which cronsim refuses an expression.

    :raises InvalidArgument: when it isn't installed.
    """
    try:
        from cronsim import CronSimError
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            "cron expressions need the extra 'periodic': pip install "
            "'sqla-vitess-messages[periodic]'; a timedelta works without it"
        ) from error
    # Some malformed fields make it fail in other ways.
    return CronSimError, AssertionError, TypeError, ValueError


def latest(
    next_time: Callable[[datetime], datetime | None], after: datetime, until: datetime
) -> datetime | None:
    """Return the last time of a schedule in a span, without enumerating all of them.

    :param next_time: see :meth:`Schedule.next`.
    :param after: the beginning of the span, which isn't part of it.
    :param until: its end, which is.
    """
    found = next_time(after)
    if found is None or found > until:
        return None
    end = until
    while end - found > _RESOLUTION:
        middle = found + (end - found) / 2
        time = next_time(middle)
        if time is None or time > until:
            end = middle
        else:
            found = time
    return found
