"""Payload values as JSON and as text of the command line, by the Python types of their columns.

====================================== ==========================================================
type of the column                     in JSON
====================================== ==========================================================
``int``, ``float``, ``bool``, ``str``  as they are
``Decimal``, ``UUID``                  text
``datetime``, ``date``, ``time``       text in ISO 8601
``timedelta``                          seconds
``Enum``                               the name of a member, or the text
``bytes``                              text in base64
JSON, and types of the user's own      as they are
====================================== ==========================================================

A float that JSON lacks is shown as text, such as ``NaN``, and isn't accepted.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from sqlalchemy import Column
from sqlalchemy import Enum as EnumType
from sqlalchemy.types import JSON, TypeEngine

from ..errors import InvalidArgument
from ..shown import shown
from ..texts import in_json

__all__ = ["from_json", "from_text", "parse_json", "to_json"]

Converter = Callable[[Any], Any]


def parse_json(text: str) -> Any:
    """Return what a text of JSON contains.

    :raises ValueError: when it is none, or has a number that no JSON can show, such as 1e999.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def from_json(column: Column[Any], name: str, value: Any) -> Any:
    """Return a value for a column.

    :param name: of the attribute, for the error.
    :param value: as JSON has it.
    :raises InvalidArgument: with the column and its type, when it doesn't suit.
    """
    if value is None:
        if column.nullable:
            return None
        raise InvalidArgument(f"{name}: null, and the column must have a value")
    kind = _kind(column)
    if kind is None:
        return value
    expected, convert = _converter(kind, column.type)
    try:
        return convert(value)
    except (TypeError, ValueError, ArithmeticError, KeyError):
        raise InvalidArgument(
            f"{name}={shown(value)}: the column is of type {kind.__name__}; expected {expected}"
        ) from None


def from_text(column: Column[Any], name: str, text: str) -> Any:
    """Return a value for a column, of ``--where``: as in JSON, but text without quotes.

    :raises InvalidArgument: as :func:`from_json` does.
    """
    kind = _kind(column)
    if kind in (int, float, bool, timedelta) or isinstance(column.type, JSON):
        try:
            value = parse_json(text)
        except ValueError:
            value = text  # It is refused, unless the column is of JSON.
        return from_json(column, name, value)
    return from_json(column, name, text)


def to_json(value: Any) -> Any:
    """Return a column's value as JSON has it; see :func:`from_json`."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    return in_json(value)


def _kind(column: Column[Any]) -> type[Any] | None:
    """Return the Python type of a column's values; None for JSON and types that don't tell."""
    if isinstance(column.type, JSON):
        return None
    try:
        kind = column.type.python_type
    except NotImplementedError:
        return None
    return kind if issubclass(kind, Enum) or kind in _CONVERTERS else None


def _converter(kind: type[Any], type_: TypeEngine[Any]) -> tuple[str, Converter]:
    """Return what a column's values are in JSON, and what converts one, or raises an error."""
    if issubclass(kind, Enum):
        return _one_of(kind.__members__)
    if isinstance(type_, EnumType):
        return _one_of({name: name for name in type_.enums})
    if kind is int and getattr(type_, "unsigned", False):
        return "an integer from 0 to 2^64-1", lambda value: _integer(value, range(2**64))
    expected, convert = _CONVERTERS[kind]
    if kind in (datetime, time) and not getattr(type_, "timezone", True):
        return f"{expected}, without an offset", lambda value: _naive(convert(value))
    return expected, convert


def _one_of(values: Mapping[str, Any]) -> tuple[str, Converter]:
    return f"one of {', '.join(values)}", lambda name: values[_text(name)]


def _is(value: Any, *kinds: type[Any]) -> Any:
    if type(value) not in kinds:
        raise TypeError
    return value


def _text(value: Any) -> str:
    found: str = _is(value, str)
    return found


def _integer(value: Any, possible: range) -> int:
    if _is(value, int) not in possible:
        raise ValueError
    return int(value)


def _decimal(value: Any) -> Decimal:
    found = Decimal(_is(value, str, int))
    if not found.is_finite():
        raise ValueError
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _naive(value: datetime | time) -> datetime | time:
    if value.tzinfo is not None:
        raise ValueError
    return value


_CONVERTERS: dict[type[Any], tuple[str, Converter]] = {
    int: ("an integer of 64 bits", lambda value: _integer(value, range(-(2**63), 2**63))),
    float: ("a number", lambda value: float(_is(value, int, float))),
    bool: ("true or false", lambda value: _is(value, bool)),
    str: ("text", _text),
    Decimal: ('a number as text, such as "1.50"', _decimal),
    datetime: (
        "a time in ISO 8601, such as 2026-01-31T12:00:00",
        lambda value: datetime.fromisoformat(_text(value)),
    ),
    date: ("a date, such as 2026-01-31", lambda value: date.fromisoformat(_text(value))),
    time: ("a time of day, such as 12:00:00", lambda value: time.fromisoformat(_text(value))),
    timedelta: ("seconds", lambda value: timedelta(seconds=_is(value, int, float))),
    UUID: ("a UUID", lambda value: UUID(_text(value))),
    bytes: ("text in base64", lambda value: base64.b64decode(_text(value), validate=True)),
}
