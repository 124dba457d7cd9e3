"""When the ticks of periodic messages are, in particular where clocks are set forward or back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_vitess_messages import InvalidArgument, InvalidArgumentType, Periodic
from sqla_vitess_messages.periodic.schedules import Cron, Interval, latest

BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"


def nothing(_tick: datetime) -> None:
    """Make no message."""


def ticks(schedule: str, zone: str, after: str, until: str) -> list[str]:
    """Return the ticks between two times on the zone's clock, with their offsets."""
    periodic = Periodic("test", schedule, nothing, timezone=zone)
    time = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone))
    end = datetime.fromisoformat(until).replace(tzinfo=ZoneInfo(zone))
    found: list[str] = []
    while True:
        [time] = periodic.next(1, time)
        if time.astimezone(UTC) > end.astimezone(UTC):
            return found
        found.append(time.isoformat(timespec="minutes")[8:])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 02:00 to 03:00 is skipped.
        ("30 2 * * *", ["28T02:30+01:00", "29T03:00+02:00", "30T02:30+02:00"]),
        ("0,20,40 2 * * *", [
            "28T02:00+01:00", "28T02:20+01:00", "28T02:40+01:00", "29T03:00+02:00",
            "30T02:00+02:00", "30T02:20+02:00", "30T02:40+02:00",
        ]),
        ("0 2,3 * * *", [
            "28T02:00+01:00", "28T03:00+01:00", "29T03:00+02:00",
            "30T02:00+02:00", "30T03:00+02:00",
        ]),
        ("15 3 * * *", ["28T03:15+01:00", "29T03:15+02:00", "30T03:15+02:00"]),
    ],
)  # fmt: skip
def test_a_fixed_time_that_berlin_skips_runs_once_right_after(
    schedule: str, expected: list[str]
) -> None:
    assert ticks(schedule, BERLIN, "2026-03-28T00:00", "2026-03-30T12:00") == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 02:00 to 03:00 comes twice.
        ("30 2 * * *", ["24T02:30+02:00", "25T02:30+02:00", "26T02:30+01:00"]),
        ("0 2,3 * * *", [
            "24T02:00+02:00", "24T03:00+02:00", "25T02:00+02:00", "25T03:00+01:00",
            "26T02:00+01:00", "26T03:00+01:00",
        ]),
    ],
)  # fmt: skip
def test_a_fixed_time_that_comes_twice_in_berlin_runs_once(
    schedule: str, expected: list[str]
) -> None:
    assert ticks(schedule, BERLIN, "2026-10-24T00:00", "2026-10-26T12:00") == expected


@pytest.mark.parametrize(
    ("after", "until", "expected"),
    [
        ("2026-10-04T00:00", "2026-10-05T12:00", ["04T02:30+11:00", "05T02:15+11:00"]),
        ("2026-04-05T00:00", "2026-04-06T12:00", ["05T02:15+10:30", "06T02:15+10:30"]),
    ],
)
def test_a_fixed_time_at_lord_howe_which_changes_by_half_an_hour(
    after: str, until: str, expected: list[str]
) -> None:
    # Forward: 02:00 to 02:30 is skipped. Back, at 02:00: 01:30 to 02:00 comes twice.
    assert ticks("15 2 * * *", LORD_HOWE, after, until) == expected


def test_a_time_that_comes_twice_at_lord_howe_runs_once() -> None:
    found = ticks("45 1 * * *", LORD_HOWE, "2026-04-05T00:00", "2026-04-06T12:00")
    assert found == ["05T01:45+11:00", "06T01:45+10:30"]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
@pytest.mark.parametrize("minutes", [1, 15, 60])
def test_every_hour_and_every_minute_go_on_in_real_time_in_berlin(day: str, minutes: int) -> None:
    schedule = {1: "* * * * *", 15: "*/15 * * * *", 60: "0 * * * *"}[minutes]
    periodic = Periodic("test", schedule, nothing, timezone=BERLIN)
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(BERLIN))
    times = [tick.astimezone(UTC) for tick in periodic.next(8 * 60 // minutes, start)]
    assert {b - a for a, b in pairwise(times)} == {timedelta(minutes=minutes)}


@pytest.mark.parametrize("day", ["2026-10-04", "2026-04-05"])
def test_every_minute_goes_on_in_real_time_at_lord_howe(day: str) -> None:
    periodic = Periodic("test", "*/10 * * * *", nothing, timezone=LORD_HOWE)
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(LORD_HOWE))
    times = [tick.astimezone(UTC) for tick in periodic.next(60, start)]
    assert {b - a for a, b in pairwise(times)} == {timedelta(minutes=10)}


def test_every_hour_at_lord_howe_runs_whenever_the_clock_shows_a_full_hour() -> None:
    forward = ticks("0 * * * *", LORD_HOWE, "2026-10-04T00:00", "2026-10-04T04:00")
    assert forward == ["04T01:00+10:30", "04T03:00+11:00", "04T04:00+11:00"]
    back = ticks("0 * * * *", LORD_HOWE, "2026-04-05T00:00", "2026-04-05T04:00")
    assert back == ["05T01:00+11:00", "05T02:00+10:30", "05T03:00+10:30", "05T04:00+10:30"]


ZONES = {
    BERLIN: ["2026-03-28T20:00", "2026-10-24T20:00"],
    LORD_HOWE: ["2026-10-03T08:00", "2026-04-04T08:00"],
    "Africa/Cairo": ["2026-04-23T12:00", "2026-10-29T12:00"],  # Midnight is skipped.
    "America/Santiago": ["2026-09-05T20:00"],
    "Pacific/Apia": ["2011-12-29T12:00"],  # A day is skipped.
    "UTC": ["2026-03-28T12:00"],
}


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    """Fields of a cron expression."""
    value = st.integers(low, high)
    return st.one_of(
        st.just("*"),
        st.sampled_from(["*/2", "*/5", "*/7", "*/20"]),
        value.map(str),
        st.tuples(value, value).map(lambda ends: f"{min(ends)}-{max(ends)}"),
        st.lists(value, min_size=2, max_size=3).map(lambda values: ",".join(map(str, values))),
    )


@given(
    place=st.sampled_from([(zone, day) for zone, days in ZONES.items() for day in days]),
    expression=st.tuples(fields(0, 59), fields(0, 5), st.just("*"), st.just("*"), fields(0, 6)),
    minutes=st.integers(0, 1200),
)
@settings(max_examples=150, deadline=None)
def test_ticks_are_those_found_by_looking_at_the_clock_each_minute(
    place: tuple[str, str], expression: tuple[str, ...], minutes: int
) -> None:
    zone, start = ZoneInfo(place[0]), datetime.fromisoformat(place[1]).replace(tzinfo=UTC)
    after = start + timedelta(minutes=minutes)
    end = after + timedelta(hours=20)
    cron = Cron(" ".join(expression), zone)
    found, time = [], cron.next(after)
    while time is not None and time <= end:
        found.append(time)
        time = cron.next(time)
    assert found == looked_up(" ".join(expression), zone, after, end)
    assert latest(cron.next, after, end) == (found[-1] if found else None)


def looked_up(expression: str, zone: ZoneInfo, after: datetime, end: datetime) -> list[datetime]:
    """Return the ticks, found by looking at the clock each minute."""
    rule = CronSim(expression, datetime(2020, 1, 1))
    is_fixed = not any(field.startswith("*") for field in expression.split()[:2])

    def matches(wall: datetime) -> bool:
        in_time = wall.minute in rule.minutes and wall.hour in rule.hours
        return in_time and rule.match_day(wall.date())

    found: list[datetime] = []
    shown: set[datetime] = set()
    time = after - timedelta(hours=30)
    before = time.astimezone(zone).replace(tzinfo=None)
    while time < end:
        time += timedelta(minutes=1)
        wall = time.astimezone(zone).replace(tzinfo=None)
        skipped = [
            before + timedelta(minutes=n) for n in range(1, (wall - before) // timedelta(minutes=1))
        ]
        is_tick = matches(wall)
        if is_fixed:
            is_tick = (is_tick and wall not in shown) or any(map(matches, skipped))
        if is_tick and time > after:
            found.append(time)
        shown.add(wall)
        before = wall
    return found


def test_ticks_of_an_interval_are_the_same_in_every_process() -> None:
    periodic = Periodic("test", timedelta(minutes=5), nothing, timezone=BERLIN)
    start = datetime(2026, 10, 25, 0, 58, 59, tzinfo=UTC)
    assert [tick.isoformat() for tick in periodic.next(2, start)] == [
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:05:00+01:00",
    ]
    interval = Interval(timedelta(seconds=0.2))
    [first] = [interval.next(start)]
    assert first == start + timedelta(seconds=0.2)
    assert interval.next(start - timedelta(microseconds=1)) == start


@given(
    seconds=st.floats(0.1, 1e6),
    span=st.floats(0, 1e6),
    start=st.datetimes(datetime(1999, 1, 1), datetime(2099, 1, 1)),
)
def test_latest_is_the_last_tick_of_a_span(seconds: float, span: float, start: datetime) -> None:
    interval = Interval(timedelta(seconds=seconds))
    after = start.replace(tzinfo=UTC)
    until = after + timedelta(seconds=span)
    found = latest(interval.next, after, until)
    if found is None:
        following = interval.next(after)
    else:
        assert after < found <= until
        following = interval.next(found)
    assert following is not None
    assert following > until


def test_next_returns_aware_times_in_the_zone_after_a_given_one() -> None:
    periodic = Periodic("nightly", "0 3 * * *", nothing, timezone=BERLIN)
    after = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert [tick.isoformat() for tick in periodic.next(2, after=after)] == [
        "2026-07-02T03:00:00+02:00",
        "2026-07-03T03:00:00+02:00",
    ]
    assert str(periodic.next(1)[0].tzinfo) == BERLIN
    assert periodic.next(1)[0] > datetime.now(UTC)


def test_a_far_tick_is_found_soon() -> None:
    periodic = Periodic("leap", "* * 29 2 *", nothing, timezone=LORD_HOWE)
    [tick] = periodic.next(1, datetime(2026, 3, 1, tzinfo=UTC))
    assert tick.isoformat() == "2028-02-29T00:00:00+11:00"


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "60 * * * *", "x", "0 0 30 2 *", "0 0 * * L/2", "* * * * * * *", "@daily"],
)
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(InvalidArgument, match="schedule="):
        Periodic("test", expression, nothing)


def test_wrong_arguments_are_refused() -> None:
    def make(**changes: object) -> None:
        arguments = {"name": "test", "schedule": "0 3 * * *", "factory": nothing}
        Periodic(**{**arguments, **changes})  # type: ignore[arg-type]

    with pytest.raises(InvalidArgument, match="timezone='Europe/Nowhere'"):
        make(timezone="Europe/Nowhere")
    with pytest.raises(InvalidArgument, match=r"timezone='\.\./etc'"):
        make(timezone="../etc")
    with pytest.raises(InvalidArgumentType, match="timezone=5"):
        make(timezone=5)
    with pytest.raises(InvalidArgumentType, match="schedule=5"):
        make(schedule=5)
    with pytest.raises(InvalidArgument, match=r"schedule=datetime\.timedelta"):
        make(schedule=timedelta(milliseconds=50))
    with pytest.raises(InvalidArgument, match="name=''"):
        make(name="")
    with pytest.raises(InvalidArgumentType, match="name=None"):
        make(name=None)
    with pytest.raises(InvalidArgumentType, match="factory=None"):
        make(factory=None)
    with pytest.raises(InvalidArgument, match="catch_up=-1"):
        make(catch_up=-1)
    periodic = Periodic("test", "0 3 * * *", nothing)
    with pytest.raises(InvalidArgument, match="n=0"):
        periodic.next(0)
    with pytest.raises(InvalidArgument, match=r"after=.* has no time zone"):
        periodic.next(1, datetime(2026, 1, 1))


def test_a_coroutine_function_as_factory_is_refused() -> None:
    async def factory(tick: datetime) -> None: ...

    with pytest.raises(InvalidArgumentType, match="coroutine function"):
        Periodic("test", "0 3 * * *", factory)  # type: ignore[arg-type]


def test_a_fixed_offset_is_a_time_zone() -> None:
    offset = timezone(timedelta(hours=2))
    periodic = Periodic("test", "0 3 * * *", nothing, timezone=offset)
    [tick] = periodic.next(1, datetime(2026, 1, 1, tzinfo=UTC))
    assert tick.isoformat() == "2026-01-01T03:00:00+02:00"
