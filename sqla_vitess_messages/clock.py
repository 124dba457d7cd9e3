"""The library's only clock: nanoseconds since the Unix epoch, as Vitess stores times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from .errors import InvalidArgument, InvalidArgumentType
from .shown import shown

__all__ = [
    "MAX_SECONDS",
    "NANOSECONDS",
    "database_now",
    "from_datetime",
    "now",
    "to_datetime",
    "to_nanoseconds",
    "to_seconds",
    "wall_clock",
]

NANOSECONDS = 1_000_000_000
"""Nanoseconds in one second."""

MAX_SECONDS = 3_155_760_000
"""100 years. A longer duration, added to now, may overflow a BIGINT of nanoseconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

wall_clock: Callable[[], int] = time.time_ns
"""The source of :func:`now`. Tests replace it."""


def now() -> int:
    """Return the current time in nanoseconds since the Unix epoch."""
    return wall_clock()


class database_now(FunctionElement[int]):  # noqa: N801  # Used like a SQL function.
    """The database's current time in nanoseconds since the Unix epoch, for statements.

    With it leases depend on one clock, however many hosts take them. SQLite runs in this process,
    so its clock is :func:`now`.
    """

    name = "database_now"
    inherit_cache = True  # A ColumnElement would keep SQLAlchemy from caching the statement.
    type = BigInteger()


_NOW = bindparam("message_queue_now", callable_=now, type_=BigInteger())
"""One parameter, so that a statement has one time wherever it names it."""


@compiles(database_now)
def _compile_now(_element: database_now, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(_NOW, **kw)


@compiles(database_now, "mysql")
@compiles(database_now, "mariadb")
def _compile_mysql_now(_element: database_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    # UNIX_TIMESTAMP(NOW()) would be ambiguous in the hour in which summer time ends.
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000)"


def to_seconds(value: float | timedelta, name: str, *, minimum: float = 0) -> int | float:
    """Check a duration and return it in seconds.

    :param value: seconds, or a timedelta.
    :param name: the argument's name, for the error.
    :param minimum: the least number of seconds allowed.
    :return: an int where the seconds are whole, else a float.
    :raises InvalidArgumentType: when it is neither a number nor a timedelta.
    :raises InvalidArgument: when it is not a finite number from ``minimum`` to 100 years.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InvalidArgumentType(
            f"{name}={shown(value)}: expected seconds as int or float, or a timedelta"
        )
    if not math.isfinite(seconds) or not minimum <= seconds <= MAX_SECONDS:
        raise InvalidArgument(
            f"{name}={shown(value)}: expected from {minimum} to {MAX_SECONDS} seconds (100 years)"
        )
    return int(seconds) if seconds == int(seconds) else seconds


def to_nanoseconds(seconds: float) -> int:
    """Return a checked number of seconds as nanoseconds."""
    return round(seconds * NANOSECONDS)


def from_datetime(value: datetime, name: str) -> int:
    """Return an aware datetime as nanoseconds since the Unix epoch.

    :raises InvalidArgumentType: when it isn't a datetime.
    :raises InvalidArgument: when it has no time zone, or isn't from 1970 to 2199.
    """
    if not isinstance(value, datetime):
        raise InvalidArgumentType(f"{name}={shown(value)}: expected a datetime with a time zone")
    if value.utcoffset() is None:
        raise InvalidArgument(
            f"{name}={shown(value)}: has no time zone; give one, as in "
            "datetime.now(timezone.utc) or value.replace(tzinfo=...)"
        )
    nanoseconds = (value - _EPOCH) // timedelta(microseconds=1) * 1000
    if not 0 <= nanoseconds < 7_258_118_400 * NANOSECONDS:
        raise InvalidArgument(f"{name}={shown(value)}: expected a time from 1970 to 2199")
    return nanoseconds


def to_datetime(nanoseconds: int) -> datetime:
    """Return nanoseconds since the Unix epoch as a datetime in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
