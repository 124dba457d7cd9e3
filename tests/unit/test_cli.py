"""What the command line computes and how it shows it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Integer,
    Interval,
    LargeBinary,
    String,
    TypeDecorator,
)
from sqlalchemy.dialects.mysql import BIGINT
from sqlalchemy.orm import sessionmaker
from sqlalchemy.types import JSON, TypeEngine

from sqla_vitess_messages import InvalidArgument, Periodic, Scheduler
from sqla_vitess_messages.cli.arguments import parse_duration
from sqla_vitess_messages.cli.exits import error_line, print_error
from sqla_vitess_messages.cli.scheduling import _coming_ticks
from sqla_vitess_messages.cli.showing import ago, local_time
from sqla_vitess_messages.cli.values import from_json, from_text, to_json
from sqla_vitess_messages.cli.watching import HEIGHT, bars
from sqla_vitess_messages.testing import travelling_clock

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (0.4, "now"),
        (-3, "3 seconds ago"),
        (-1, "1 second ago"),
        (90, "in 90 seconds"),
        (-200, "3 minutes ago"),
        (-7300, "2 hours ago"),
        (3 * 86_400 + 5, "in 3 days"),
        (-400 * 86_400, "400 days ago"),
    ],
)
def test_a_time_is_shown_as_people_say_it(seconds: float, text: str) -> None:
    assert ago(NOW + timedelta(seconds=seconds), NOW) == text


def test_a_time_is_shown_in_the_local_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = local_time(NOW.astimezone(timezone(timedelta(hours=3))), NOW).plain
    local = NOW.astimezone()
    assert shown == f"{local:%Y-%m-%d %H:%M:%S %Z} (now)"


def test_ticks_are_in_order_though_the_clock_is_set_back() -> None:
    make: Any = partial(Periodic, factory=lambda _tick: None, timezone="Europe/Berlin")
    periodic = [make("a", timedelta(minutes=45)), make("b", timedelta(minutes=40))]
    with travelling_clock() as clock:
        clock.move_to(datetime(2026, 10, 25, tzinfo=UTC))
        lines = list(_coming_ticks(Scheduler(sessionmaker(), periodic), 4))
    ticks = [datetime.fromisoformat(line.split("  ")[0]).astimezone(UTC) for line in lines]
    assert (len(ticks), ticks) == (8, sorted(ticks))


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("1.5h", 5400), ("7d", 604_800), ("2 w", 1_209_600), ("0", 0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text, "--in") == seconds


@pytest.mark.parametrize("text", ["", "d", "-1", "1y", "1h30m", "inf", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--in"):
        parse_duration(text, "--in")


def test_the_highest_bar_has_all_lines() -> None:
    lines = bars([0, 1, 8])
    assert len(lines) == HEIGHT
    assert [line[-1] for line in lines] == ["█"] * HEIGHT
    assert {line[-3] for line in lines} == {" "}
    assert bars([]) == bars([0.0]) == [" " * len(lines[0])] * HEIGHT


class OwnType(TypeDecorator[object]):
    impl = String
    cache_ok = True


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (Integer(), "7", 7),
        (BigInteger(), str(2**62 + 1), 2**62 + 1),
        (Float(), "0.5", 0.5),
        (Float(), "2", 2.0),
        (Interval(), "90.5", timedelta(seconds=90.5)),
        (String(), "7", "7"),
        (String(), "", ""),
        (DateTime(), "2026-01-31", datetime(2026, 1, 31)),
        (LargeBinary(), "AP8=", b"\x00\xff"),
        (JSON(), '{"a": 1}', {"a": 1}),
        (JSON(), "text", "text"),
        (OwnType(), "7", "7"),
    ],
)
def test_text_becomes_the_type_of_its_column(
    type_: TypeEngine[object], text: str, value: object
) -> None:
    assert from_text(Column("name", type_), "name", text) == value


def test_what_json_does_not_know_is_shown_as_text() -> None:
    assert to_json({"a": {1}}) == "{'a': {1}}"
    assert from_json(Column("name", OwnType()), "name", {"a": 1}) == {"a": 1}


def test_an_unexpected_error_is_a_line_without_a_password() -> None:
    assert error_line(RuntimeError("mysql://user:secret@host")) == (
        "RuntimeError: 'mysql://user:***@host'"
    )


def test_an_error_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("\x1b[2J\ud800\x9b ä\n\t")
    assert capsys.readouterr().err == "Error: \\x1b[2J\\ud800\\x9b ä\n\t\n"


@pytest.mark.parametrize(
    ("type_", "value"), [(DateTime(timezone=True), NOW), (BIGINT(unsigned=True), 2**64 - 1)]
)
def test_what_the_column_can_hold_is_accepted(type_: TypeEngine[object], value: object) -> None:
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    assert from_text(Column("name", type_), "name", text) == value


def test_numbers_that_json_lacks_are_text() -> None:
    assert to_json({"a": [math.nan, -math.inf, 0.5]}) == {"a": ["NaN", "-Infinity", 0.5]}
    assert to_json(math.inf) == "Infinity"
