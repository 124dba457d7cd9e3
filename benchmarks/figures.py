"""A figure is measured beside its reference, in turns, in the same run."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

QUICK = os.environ.get("QUICK", "") not in ("", "0")
"""Measure a fifth, once: two minutes instead of twenty."""

ROUNDS = 1 if QUICK else 3


def scaled(count: int) -> int:
    """Return how many to do of what a whole run does so often."""
    return max(count // 5, 1) if QUICK else count


@dataclass(frozen=True)
class Goal:
    """What a ratio should be: at least, or for what had better be small, at most."""

    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


@dataclass
class Figure:
    """One row of the table.

    :param values: ours, one of each round.
    :param reference: what it is compared with.
    :param references: its values, one of each round.
    """

    name: str
    unit: str
    reference: str
    goal: Goal | None = None
    values: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The middle one of the rounds' ratios: what slows a whole round down cancels out."""
        pairs = zip(self.values, self.references, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.is_met(self.ratio)

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "value": round(statistics.median(self.values), 3),
            "min": round(min(self.values), 3),
            "max": round(max(self.values), 3),
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": round(statistics.median(self.references), 3),
            "ratio": round(self.ratio, 3),
            "goal": None if self.goal is None else str(self.goal),
            "met": self.met,
        }

    def as_row(self) -> str:
        middle = statistics.median(self.values)
        goal = "reported" if self.goal is None else f"{self.goal}"
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        cells = [
            self.name,
            f"{as_text(middle)} ({as_text(min(self.values))}–{as_text(max(self.values))})",
            self.unit,
            f"{self.reference}: {as_text(statistics.median(self.references))}",
            f"{self.ratio:.2f}",
            goal,
            verdict,
        ]
        return "| " + " | ".join(cells) + " |"


HEAD = (
    "| what | median (min–max) | unit | reference | ratio | goal | |\n|---|---|---|---|---|---|---|"
)


def compare(
    name: str,
    ours: Callable[[], float],
    reference: str,
    theirs: Callable[[], float],
    *,
    unit: str = "/s",
    goal: Goal | None = None,
    rounds: int = ROUNDS,
) -> Figure:
    """Measure the two in turns."""
    figure = Figure(name, unit, reference, goal)
    for number in range(rounds):
        # What comes second meets other weather: it takes turns, too.
        turns: Sequence[tuple[Callable[[], float], list[float]]] = [
            (ours, figure.values),
            (theirs, figure.references),
        ]
        for measure, into in turns if number % 2 else reversed(turns):
            gc.collect()
            into.append(measure())
    return figure


def as_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
