"""The command ``schedule``: run a scheduler that a module defines, or print what it will do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from ..logs import get_logger
from ..periodic.scheduler import BaseScheduler
from .log_lines import log_to_terminal
from .targets import load_instance

__all__ = ["schedule"]

log = get_logger(__name__)


def schedule(
    target: Annotated[
        str,
        typer.Argument(
            help="package.module:name of a Scheduler or an AsyncScheduler, or of a function that "
            "returns one.",
            show_default=False,
        ),
    ],
    next_ticks: Annotated[
        int | None,
        typer.Option(
            "--next",
            min=1,
            max=1000,
            help="Print this many coming ticks of each, and exit.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Enqueue periodic messages until SIGTERM or SIGINT.

    Run it in as many processes as you like: each tick is enqueued once. A second signal ends it at
    once, with exit code 1.
    """
    scheduler = load_instance(target, BaseScheduler, "Scheduler")
    if next_ticks is None:
        log_to_terminal()
        return 0 if scheduler._run_in_process(lambda: _log_next_ticks(scheduler)) else 1
    for line in _coming_ticks(scheduler, next_ticks):
        typer.echo(line)
    return 0


def _log_next_ticks(scheduler: BaseScheduler) -> None:
    for line in _coming_ticks(scheduler, 1):
        log.info("scheduling %s", line)


def _coming_ticks(scheduler: BaseScheduler, n: int) -> Iterator[str]:
    """Yield a line of text for each of the coming ticks, in order of time.

    :param n: how many of each periodic message.
    """
    ticks = [(tick, one.name) for one in scheduler.periodic for tick in one.next(n)]
    # Datetimes of one time zone compare by what its clock shows, which may be set back.
    for tick, name in sorted(ticks, key=lambda found: (found[0].timestamp(), found[1])):
        yield f"{tick.isoformat(sep=' ')}  {name}"
