"""The command ``stats``: how many messages each queue has in each state."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table as Grid

from ..errors import InvalidArgument
from ..rows.stats import STATES
from ..shown import shown
from .arguments import AsJson, Target, Url
from .counting import Counts, QueueCounts, count_queues
from .database import connect, in_transaction
from .optional_value import OptionalValueCommand
from .showing import duration, grid, print_json, print_table
from .targets import load_models
from .watching import watch_counts

__all__ = ["StatsCommand", "stats"]

DEFAULT_INTERVAL = 2.0
"""Seconds between two counts while watching."""

MIN_INTERVAL = 0.1


class StatsCommand(OptionalValueCommand):
    """``--watch`` may be given without seconds."""

    option = "--watch"
    default = str(DEFAULT_INTERVAL)


def stats(
    target: Target,
    url: Url,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="[SECONDS]",
            help="Count again every SECONDS seconds, until Ctrl-C, with the messages enqueued and "
            f"settled per second. Default: {DEFAULT_INTERVAL:g}.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Count the messages of each queue by their state.

    Counting reads an index of the whole queue, so the more messages there are, the longer it takes.
    """
    interval = None if watch is None else _interval(watch)
    if interval is not None and as_json:
        raise InvalidArgument("--json prints one document; leave out --watch")
    models = load_models(target)
    with connect(url) as engine:

        def count(before: Counts | None) -> Counts:
            return in_transaction(engine, lambda session: count_queues(models, session, before))

        if interval is not None:
            watch_counts(count, interval, partial(table_of, with_rates=True))
            return 0
        counts = count(None)
    if as_json:
        print_json([_to_json(queue, one) for queue, one in counts.items()])
    else:
        print_table(table_of(counts))
    return 0


def table_of(counts: Counts, *, with_rates: bool = False) -> Grid:
    """Return a table with a row for each queue.

    :param with_rates: whether messages per second are shown.
    """
    rates = ("enqueued/s", "settled/s") if with_rates else ()
    numbers = (*STATES, "oldest", *rates)
    table = grid("queue", *numbers, "paused", right=numbers)
    for queue, one in counts.items():
        stats = one.sample.stats
        age = stats.oldest_ready_age
        per_second = (one.enqueued_per_second, one.settled_per_second) if with_rates else ()
        table.add_row(
            queue,
            *(f"{getattr(stats, state):,}" for state in STATES),
            "" if age is None else duration(age),
            *(f"{number:,.1f}" for number in per_second),
            "paused" if one.is_paused else "",
        )
    return table


def _to_json(queue: str, counts: QueueCounts) -> dict[str, Any]:
    stats = counts.sample.stats
    age = stats.oldest_ready_age
    return {
        "queue": queue,
        **{state: getattr(stats, state) for state in STATES},
        "oldest_ready_age": None if age is None else age.total_seconds(),
        "paused": counts.is_paused,
    }


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not MIN_INTERVAL <= seconds < math.inf:
        raise InvalidArgument(f"--watch {shown(text)}: expected at least {MIN_INTERVAL} seconds")
    return seconds
