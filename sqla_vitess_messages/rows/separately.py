"""Do something for many messages at once, though it can't be done for some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import exc

from .transient import is_refused, is_transient

__all__ = ["find_failures", "may_be_an_item"]

T = TypeVar("T")


def may_be_an_item(error: Exception) -> bool:
    """Return whether something may have failed because of an item, and not of the database."""
    if isinstance(error, exc.DBAPIError):
        return not (error.connection_invalidated or is_transient(error) or is_refused(error))
    return not isinstance(error, (OSError, exc.TimeoutError))


def find_failures(
    call: Callable[[Sequence[T]], object], items: Sequence[T]
) -> list[tuple[T, Exception]]:
    """Call a function with all items, and with ever smaller parts of those for which it fails.

    :param call: does something for all of its items, or fails and does nothing.
    :return: the items for which it fails, each with the error.
    :raises Exception: when it is the database that fails, and not an item.
    """
    try:
        call(items)
    except Exception as error:
        if not may_be_an_item(error):
            raise
        if len(items) == 1:
            return [(items[0], error)]
        middle = len(items) // 2
        return find_failures(call, items[:middle]) + find_failures(call, items[middle:])
    return []
