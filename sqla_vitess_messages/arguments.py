"""Checks of arguments that several public classes have in common."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from functools import partial
from itertools import starmap
from typing import Any

from .errors import InvalidArgument, InvalidArgumentType
from .mixin import MessageQueueMixin
from .shown import shown

__all__ = ["check_count", "check_function", "check_model", "check_result", "is_coroutine_function"]

_KINDS = (
    (inspect.iscoroutinefunction, "a coroutine function"),
    (inspect.isasyncgenfunction, "an asynchronous generator function"),
    (inspect.isgeneratorfunction, "a generator function"),
)
"""The functions that return without having run."""

_UNFINISHED = (Future, Generator, AsyncGenerator, map, filter, starmap)
"""The results of functions that have not run. A database's result is an iterator, too, and has."""


def check_count(name: str, value: int, most: int | None = None) -> None:
    """Check that an argument is a whole number from 1 to ``most``.

    :param most: None for no limit.
    :raises InvalidArgumentType: when it is no int.
    :raises InvalidArgument: when it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentType(f"{name}={shown(value)}: expected an int")
    if value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgument(f"{name}={value}: expected {limits}")


def check_model(value: Any) -> None:
    """Check that an argument is the class of a queue.

    :raises InvalidArgumentType: otherwise.
    """
    if not (isinstance(value, type) and issubclass(value, MessageQueueMixin)):
        raise InvalidArgumentType(f"model={shown(value)}: expected a class with MessageQueueMixin")


def check_function(name: str, value: Any, *, is_async: bool = False) -> None:
    """Check that an argument is a function that runs when it is called, or awaited.

    Of a callable object, the kind of its ``__call__`` counts; of a partial, that of its function.

    :param is_async: whether a coroutine function is expected, and nothing else.
    :raises InvalidArgumentType: otherwise.
    """
    if not callable(value):
        raise InvalidArgumentType(f"{name}={shown(value)}: expected a callable")
    if is_async:
        # A decorator may return an ordinary function, which returns the coroutine.
        if not (is_coroutine_function(value) or is_coroutine_function(inspect.unwrap(value))):
            raise InvalidArgumentType(
                f"{name}={shown(value)}: expected a coroutine function (async def)"
            )
        return
    for is_kind, kind in _KINDS:
        if _is(is_kind, value):
            raise InvalidArgumentType(
                f"{name}={shown(value)}: {kind} returns before it has run; "
                "expected an ordinary function"
            )


def is_coroutine_function(value: Callable[..., Any]) -> bool:
    """Return whether a call of a function, a partial or an object returns a coroutine."""
    return _is(inspect.iscoroutinefunction, value)


def _is(is_kind: Callable[[Any], bool], value: Any) -> bool:
    while isinstance(value, partial):
        value = value.func
    return is_kind(value) or is_kind(type(value).__call__)


def check_result(result: object) -> None:
    """Check that a handler has run when it returned.

    :raises InvalidArgumentType: when it returned something that still has to run.
    """
    if inspect.isawaitable(result) or isinstance(result, _UNFINISHED):
        if inspect.iscoroutine(result):
            result.close()  # Otherwise Python warns that it was never awaited.
        raise InvalidArgumentType(
            f"the handler returned {shown(result)}, which has not run; return its result instead"
        )
