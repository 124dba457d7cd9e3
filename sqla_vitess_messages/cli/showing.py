"""Print results: as JSON, as tables, and times as people read them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import typer
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ..texts import encodable

__all__ = [
    "ago",
    "duration",
    "grid",
    "local_time",
    "make_console",
    "print_json",
    "print_table",
    "printable",
]

_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tabs and the ends of lines."""

MIN_WIDTH = 160
"""Characters of a line when the output is no terminal, such as a file."""


def print_json(document: Any) -> None:
    """Print one JSON document, in ASCII, which every output can encode."""
    typer.echo(json.dumps(document, indent=2))


def printable(text: str) -> str:
    """Return a text with the code in place of each character that would control the terminal."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", encodable(text))


def print_table(table: Grid) -> None:
    """Print a table."""
    make_console().print(table)


def make_console() -> Console:
    """Return a console as wide as the terminal, or wide enough for a file."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    return console


def grid(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Grid:
    """Return an empty table.

    :param right: the columns with numbers.
    """
    table = Grid(box=None, pad_edge=False, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        is_number = column in right
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(column, justify=justify, no_wrap=is_number, overflow="fold")
    return table


def local_time(time: datetime, now: datetime | None = None) -> Text:
    """Return a time in the local zone, and how long ago it was or in how long it will be."""
    local = time.astimezone()
    return Text(f"{local:%Y-%m-%d %H:%M:%S %Z} ({ago(time, now)})")


def ago(time: datetime, now: datetime | None = None) -> str:
    """Return how long ago a time was, or in how long it will be.

    :param now: the time to compare with. Default: the current one.
    """
    difference = time - (now or datetime.now(UTC))
    if abs(difference) < timedelta(seconds=1):
        return "now"
    if difference > timedelta(0):
        return f"in {duration(difference)}"
    return f"{duration(-difference)} ago"


def duration(length: timedelta) -> str:
    """Return a duration in the largest unit of which it has at least two."""
    seconds = length.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    unit, size = next((unit, size) for unit, size in _UNITS if seconds >= 2 * size or size == 1)
    number = int(seconds // size)
    return f"{number} {unit}{'' if number == 1 else 's'}"
