"""Which tick a scheduler takes for due, by the last one that is done and the database's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sqla_vitess_messages import Periodic
from sqla_vitess_messages.periodic import progress
from sqla_vitess_messages.periodic.progress import Due, Progress

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return a time after noon."""
    return NOON + timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)


def scheduler(interval: float, *, since: float, catch_up: float = 3600) -> Progress:
    """Return a scheduler that has begun at a time."""
    periodic = Periodic("test", timedelta(seconds=interval), lambda _tick: None, catch_up=catch_up)
    begun = Progress(periodic)
    begun.begin(at(since))
    return begun


def test_the_next_tick_is_awaited() -> None:
    assert scheduler(10, since=0).due(at(0), at(9.9)) == Due(at(10), is_due=False)
    assert scheduler(10, since=0).due(at(0), at(10)) == Due(at(10), is_due=True)


def test_ticks_since_the_start_are_done_in_order_though_late() -> None:
    begun = scheduler(10, since=5)
    for number in (10, 20, 30):
        assert begun.due(at(number - 10), at(59)) == Due(at(number), is_due=True)


def test_a_scheduler_that_was_suspended_makes_up_for_the_last_tick_and_goes_on() -> None:
    begun = scheduler(10, since=5)
    assert begun.due(at(0), at(1005)) == Due(at(1000), is_due=True)
    assert begun.due(at(1000), at(1005)) == Due(at(1010), is_due=False)
    assert begun.due(at(1000), at(1021)) == Due(at(1010), is_due=True)


def test_of_ticks_before_the_start_the_last_one_is_made_up_for() -> None:
    begun = scheduler(10, since=45)
    assert begun.due(at(0), at(52)) == Due(at(40), is_due=True)
    assert begun.due(at(40), at(52)) == Due(at(50), is_due=True)


def test_a_tick_before_the_start_is_left_to_others_as_long_as_they_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 1000.0)
    begun = scheduler(10, since=45)
    for last in (0, 10, 20, 30):
        assert begun.due(at(last), at(52)) == Due(at(last + 10), is_due=False)
    assert begun.due(at(40), at(52)) == Due(at(50), is_due=True)


def test_what_nobody_has_done_for_long_is_made_up_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 1000.0)
    assert scheduler(10, since=3605).due(at(0), at(3606)) == Due(at(3600), is_due=True)


def test_what_is_too_old_is_left_out_and_the_next_tick_awaited() -> None:
    begun = scheduler(900, since=1300, catch_up=300)
    assert begun.due(at(0), at(1300)) == Due(at(1800), is_due=False)
    assert begun.due(at(0), at(1800)) == Due(at(1800), is_due=True)
    assert scheduler(900, since=1300, catch_up=500).due(at(0), at(1300)).is_due
    assert not scheduler(900, since=1300, catch_up=0).due(at(0), at(1300)).is_due


def test_a_clock_that_is_set_back_makes_nothing_due() -> None:
    begun = scheduler(10, since=100)
    assert begun.due(at(100), at(50)) == Due(at(110), is_due=False)
