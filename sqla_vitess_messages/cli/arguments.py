"""The arguments that several commands have in common."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from ..errors import InvalidArgument
from ..shown import shown

__all__ = [
    "AsJson",
    "Everything",
    "Ids",
    "State",
    "Target",
    "Url",
    "Where",
    "Yes",
    "parse_duration",
]

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="package.module:name of a declarative base or a MetaData, for all its queues, or of a "
        "model, for one.",
        show_default=False,
    ),
]
Url = Annotated[
    str,
    typer.Option(
        help="Database URL. An asyncio driver in it is replaced by one without.",
        envvar="DATABASE_URL",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID", help="Ids of messages.", show_default=False),
]
Everything = Annotated[
    bool, typer.Option("--all", help="All messages that match --state and --where.")
]
State = Annotated[
    str | None,
    typer.Option(help="ready, scheduled, leased, retrying, dead or acked.", show_default=False),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="Only messages with this value. Repeat it for several columns.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(text: str, name: str) -> float:
    """Return the seconds of a duration such as ``90``, ``15m`` or ``7d``.

    :param name: the option's, for the error.
    :raises InvalidArgument: when it can't be parsed.
    """
    if (found := _DURATION.fullmatch(text.strip())) is None:
        raise InvalidArgument(
            f"{name} {shown(text)}: expected seconds, or a number with one of s, m, h, d and w, as "
            "in 7d"
        )
    number, unit = found.groups()
    return float(number) * _SECONDS[unit]
