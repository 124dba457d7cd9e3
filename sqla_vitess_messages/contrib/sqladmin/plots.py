"""The points of the plot of a queue's last hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ... import clock
from ...rows.rates import Sample
from .sampling import HOUR

__all__ = ["Plot", "Rates", "plot", "rates"]

WIDTH, HEIGHT = 240, 40
MAX_POINTS = 120

MIN_SECONDS = 60.0
"""The least time that a plot shows."""

RECENT = 15
"""Seconds over which the present rates are averaged."""


@dataclass(frozen=True)
class Rates:
    """Messages per second."""

    enqueued: float
    settled: float


@dataclass(frozen=True)
class Plot:
    """Points of SVG polylines, in a picture of 240 by 40, and the values at its top."""

    seconds: float
    """How long the time is that is shown."""
    enqueued: str
    settled: str
    top_rate: float
    ready: str
    top_ready: int
    width: int = WIDTH
    height: int = HEIGHT


def rates(samples: Sequence[Sample], seconds: float = RECENT) -> Rates:
    """Return the rates of the last seconds of samples; 0 if there is one sample only."""
    total, enqueued, settled = 0.0, 0, 0
    for sample in reversed(samples):
        if total >= seconds or not sample.seconds:
            break
        total += sample.seconds
        enqueued += sample.enqueued
        settled += sample.settled
    return Rates(enqueued / total, settled / total) if total else Rates(0.0, 0.0)


def plot(samples: Sequence[Sample], now: int) -> Plot:
    """Return the plot of the time since the first sample: an hour at most."""
    ages = [(now - sample.time) / clock.NANOSECONDS for sample in samples]
    seconds = min(max(MIN_SECONDS, *ages), HOUR) if ages else HOUR
    parts: dict[int, list[Sample]] = {}
    for sample, age in zip(samples, ages, strict=True):
        place = int((1 - age / seconds) * MAX_POINTS)
        parts.setdefault(min(max(place, 0), MAX_POINTS), []).append(sample)
    averages = {place: rates(some, HOUR) for place, some in parts.items()}
    enqueued = {place: average.enqueued for place, average in averages.items()}
    settled = {place: average.settled for place, average in averages.items()}
    ready = {place: some[-1].stats.ready for place, some in parts.items()}
    top_rate = max((*enqueued.values(), *settled.values()), default=0.0)
    top_ready = max(ready.values(), default=0)
    return Plot(
        seconds=seconds,
        enqueued=_points(enqueued, top_rate),
        settled=_points(settled, top_rate),
        top_rate=top_rate,
        ready=_points(ready, top_ready),
        top_ready=top_ready,
    )


def _points(values: Mapping[int, float], top: float) -> str:
    return " ".join(
        f"{place * WIDTH / MAX_POINTS:.1f},{HEIGHT - 1 - value / (top or 1) * (HEIGHT - 2):.1f}"
        for place, value in sorted(values.items())
    )
