"""Plots of the figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.figures import Figure, as_text

MET, MISSED, REPORTED = "#2a7f62", "#c8553d", "#8a8d91"

LEGEND = [
    Patch(color=MET, label="goal met"),
    Patch(color=MISSED, label="goal missed"),
    Patch(color=REPORTED, label="no goal"),
    Line2D([], [], color="black", linewidth=2, label="the goal"),
]


def draw(figures: Sequence[Figure], folder: Path) -> None:
    """Write ``ratios.png``, where more is better, and ``costs.png``, where less is better."""
    folder.mkdir(parents=True, exist_ok=True)
    large = [f for f in figures if f.unit == "/s"]
    small = [f for f in figures if f.unit != "/s"]
    _draw(large, folder / "ratios.png", "times the reference: more is better")
    _draw(small, folder / "costs.png", "times the reference: less is better")


def _draw(figures: Sequence[Figure], path: Path, label: str) -> None:
    if not figures:
        return
    picture, axes = plt.subplots(figsize=(10, 0.42 * len(figures) + 1.2))
    for row, figure in enumerate(reversed(figures)):
        colour = {True: MET, False: MISSED, None: REPORTED}[figure.met]
        axes.barh(row, figure.ratio, color=colour, height=0.6)
        if figure.goal is not None:
            axes.plot([figure.goal.bound] * 2, [row - 0.4, row + 0.4], color="black", linewidth=2)
        value = as_text(statistics.median(figure.values))
        end = max(figure.ratio, figure.goal.bound if figure.goal else 0)
        axes.annotate(f"  {figure.ratio:.2f}  ({value} {figure.unit})",
                      (end, row), va="center", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _tick: f"{ratio:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(handles=LEGEND, loc="lower right", fontsize=8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 4)
    axes.margins(y=0.01)
    axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    names = [f"{figure.name}\n(reference: {figure.reference})" for figure in reversed(figures)]
    axes.set_yticks(range(len(figures)), names, fontsize=7)
    axes.set_xlabel(label)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(picture)
