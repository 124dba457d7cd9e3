"""Checks of arguments that subscribers and workers have in common."""

from __future__ import annotations

from ..errors import InvalidArgument, InvalidArgumentType

__all__ = ["check_count"]


def check_count(name: str, value: int, most: int | None = None) -> None:
    """Check that an argument is a whole number from 1 to ``most``.

    :param most: None for no limit.
    :raises InvalidArgumentType: when it is no int.
    :raises InvalidArgument: when it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentType(f"{name}={value!r}: expected an int")
    if value < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgument(f"{name}={value}: expected {limits}")
