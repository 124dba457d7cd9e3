"""The numbers per second and the plots of the admin's overview follow from samples."""

from __future__ import annotations

import pytest

from sqla_vitess_messages.clock import NANOSECONDS
from sqla_vitess_messages.contrib.sqladmin.plots import HEIGHT, WIDTH, plot, rates
from sqla_vitess_messages.rows.rates import Sample
from sqla_vitess_messages.rows.stats import QueueStats


def sample(second: int, ready: int = 0, seconds: float = 5.0, settled: int = 0) -> Sample:
    stats = QueueStats(ready, 0, 0, 0, 0, None)
    return Sample(second * NANOSECONDS, stats, seconds, enqueued=2 * settled, settled=settled)


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_one_sample_has_no_rate() -> None:
    assert rates([]).settled == 0
    assert rates([sample(0, seconds=0)]).enqueued == 0


def test_rates_are_those_of_the_last_samples() -> None:
    samples = [
        sample(0, seconds=0),
        *(sample(5 * n, settled=500 if n < 5 else 10) for n in range(1, 9)),
    ]
    assert rates(samples).settled == pytest.approx(2)
    assert rates(samples).enqueued == pytest.approx(4)


@pytest.mark.parametrize("last", [35, 1800, 3600])
def test_a_plot_shows_all_samples_within_its_picture(last: int) -> None:
    samples = [sample(second, ready=second, settled=second) for second in range(0, last + 1, 5)]
    shown = plot(samples, last * NANOSECONDS)
    for line in (shown.enqueued, shown.settled, shown.ready):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(line))
        assert [x for x, _y in points(line)] == sorted(x for x, _y in points(line))
    assert shown.top_ready == last
    assert shown.seconds == max(60, last)
    assert points(shown.ready)[-1] == (WIDTH, 1.0)


def test_a_plot_of_nothing_is_empty() -> None:
    assert plot([], 0).ready == ""
