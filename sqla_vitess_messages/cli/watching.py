"""Watch queues: count again and again, with a plot of the last minutes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Group
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from .counting import Counts
from .showing import make_console

__all__ = ["bars", "watch_counts"]

WIDTH = 75
"""Counts that a plot shows, each as wide as a character: of 2.5 minutes by default."""

HEIGHT = 4
"""Lines of the plot."""

_BLOCKS = " ▁▂▃▄▅▆▇█"


def watch_counts(
    count: Callable[[Counts | None], Counts], interval: float, show: Callable[[Counts], Grid]
) -> None:
    """Show the counts of queues until Ctrl-C. If there is no terminal, they follow one another.

    :param count: counts again, given the counts before.
    :param interval: seconds between them.
    :param show: returns a table.
    """
    console = make_console()
    totals: deque[tuple[float, float]] = deque(maxlen=WIDTH)
    try:
        with Live(console=console, auto_refresh=False) as live:
            counts = count(None)
            while True:
                time.sleep(interval)
                counts = count(counts)
                totals.append(_total(counts))
                shown = Group(show(counts), Text(), *_plots(totals, interval))
                if console.is_terminal:
                    live.update(shown, refresh=True)
                else:
                    console.print(shown)
    except KeyboardInterrupt:
        return


def _total(counts: Counts) -> tuple[float, float]:
    """Return how many messages of all queues are enqueued and settled per second."""
    return (
        sum(one.enqueued_per_second for one in counts.values()),
        sum(one.settled_per_second for one in counts.values()),
    )


def _plots(totals: Iterable[tuple[float, float]], interval: float) -> Iterator[Text]:
    minutes = WIDTH * interval / 60
    for name, values in zip(("enqueued/s", "settled/s"), zip(*totals, strict=True), strict=True):
        yield Text(f"{name}: {values[-1]:,.1f}, at most {max(values):,.1f} in {minutes:.1f} min")
        yield Text("\n".join(bars(values)), style="cyan")


def bars(values: Sequence[float]) -> list[str]:
    """Return the lines of a plot with a bar for each value; the highest has all lines."""
    top = max(values, default=0) or 1
    eighths = [round(value / top * HEIGHT * 8) for value in values]
    return [
        "".join(_BLOCKS[min(max(number - line * 8, 0), 8)] for number in eighths).rjust(WIDTH)
        for line in reversed(range(HEIGHT))
    ]
