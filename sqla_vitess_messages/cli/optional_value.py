"""An option whose value may be left out, which typer doesn't know."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperCommand

__all__ = ["OptionalValueCommand"]


class OptionalValueCommand(TyperCommand):
    """A command with an option whose value is a number, or left out."""

    option: ClassVar[str]
    default: ClassVar[str]
    """The value when it is left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the value where it is left out."""
        filled: list[str] = []
        for argument, following in zip(args, [*args[1:], ""], strict=True):
            filled.append(argument)
            if argument == self.option and not following[:1].isdigit():
                filled.append(self.default)
        return super().parse_args(ctx, filled)
