"""The flags of Vitess's programs, which differ from one version to another."""

from __future__ import annotations

from collections.abc import Iterable

from .downloads import Programs

__all__ = ["spell"]

_DASHED = {"--bind-address", "--tablet-path"}
"""The flags of Vitess 22 that have dashes in their names; all others have underscores."""


def spell(programs: Programs, arguments: Iterable[str]) -> list[str]:
    """Return arguments with the names of flags that a version knows, and have it log to stderr.

    :param arguments: with the names of Vitess 23, which later versions keep.
    """
    spelled = [
        f"--{argument[2:].replace('-', '_')}"
        if programs.major < 23 and argument.startswith("--") and argument not in _DASHED
        else argument
        for argument in arguments
    ]
    # From Vitess 24 on, a program logs to stderr anyway, and warns of the flag.
    return [*spelled, "--logtostderr"] if programs.major < 24 else spelled
