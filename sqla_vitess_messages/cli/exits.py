"""How every command ends: an exit code, and one line of text instead of a traceback.

==== ===========================================================================================
code meaning
==== ===========================================================================================
0    done
1    something is wrong that the command was to find, an id was named that matches nothing, or the
     user has aborted
2    the command can't be executed: a wrong argument, a database that can't be reached or refuses
==== ===========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer
from sqlalchemy.exc import SQLAlchemyError

from ..errors import MessageQueueError
from ..shown import shown
from .showing import printable

__all__ = ["error_line", "exits", "print_error"]

P = ParamSpec("P")


def exits(command: Callable[P, int | None]) -> Callable[P, None]:
    """Decorate a command, so that it ends with the exit code that it returns, or with an error's.

    :param command: returns the exit code; None for 0.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except Exception as error:
            # Typer ends the process for these: the last is of output that nobody reads any more.
            if isinstance(error, (typer.Exit, typer.Abort, BrokenPipeError)):
                raise
            print_error(error_line(error))
            code = 2
        raise typer.Exit(code or 0)

    return run


def print_error(line: str) -> None:
    """Print a line for the user, not among the results."""
    typer.echo(f"Error: {printable(line)}", err=True)


def error_line(error: Exception) -> str:
    """Return the text of an error for a terminal."""
    if isinstance(error, SQLAlchemyError):
        # The driver's own error lacks the statement and its parameters.
        return str(getattr(error, "orig", None) or error)
    if isinstance(error, (MessageQueueError, ImportError)):
        return str(error)
    return f"{type(error).__name__}: {shown(str(error))}"
