"""Figures: each is measured together with its reference, alternately, in the same run."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

QUICK = os.environ.get("QUICK", "") not in ("", "0")
"""Do a fifth of the work, in one round: two minutes instead of twenty."""

ROUNDS = 1 if QUICK else 3


def scaled(count: int) -> int:
    """Return the number of messages for this run, given that of a full run."""
    return max(count // 5, 1) if QUICK else count


@dataclass(frozen=True)
class Goal:
    """The bound of a ratio: a minimum, or, where less is better, a maximum.

    :param limit: what bounds the ratio, to show where the goal is missed.
    """

    bound: float
    at_most: bool = False
    limit: str = ""

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


@dataclass
class Figure:
    """One row of the table.

    :param values: this library's values, one per round.
    :param reference: the name of the reference.
    :param references: the reference's values, one per round.
    """

    name: str
    unit: str
    reference: str
    goal: Goal | None = None
    values: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: whatever slows down a whole round cancels out."""
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
        median = statistics.median(self.values)
        goal = "reported" if self.goal is None else f"{self.goal}"
        result = {True: "met", False: "**missed**", None: ""}[self.met]
        if self.met is False and self.goal is not None and self.goal.limit:
            result += f": {self.goal.limit}"
        cells = [
            self.name,
            f"{as_text(median)} ({as_text(min(self.values))}–{as_text(max(self.values))})",
            self.unit,
            f"{self.reference}: {as_text(statistics.median(self.references))}",
            f"{self.ratio:.2f}",
            goal,
            result,
        ]
        return "| " + " | ".join(cells) + " |"


HEAD = "\n".join(
    ["| benchmark | median (min–max) | unit | reference | ratio | goal | |", "|---" * 7 + "|"]
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
    """Measure both alternately."""
    figure = Figure(name, unit, reference, goal)
    for number in range(rounds):
        # The order changes from round to round: the second one finds other conditions.
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
