"""Convert values to and from vtgate's format: the same Python objects as with PyMySQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from pymysql.connections import TEXT_TYPES
from pymysql.constants import FIELD_TYPE
from pymysql.converters import decoders, encoders, through

from .vtgate_pb2 import BindVariable, Field, Row

__all__ = ["Converter", "bind_variables", "converter_of", "decode", "split"]

Converter = Callable[[bytes], Any]

BINARY = 63
"""The character set of values that aren't text."""

# Vitess's type numbers, from query.proto.
NULL = 0
DECIMAL = 18
INT64 = 265
UINT64 = 778
FLOAT64 = 1036
VARCHAR = 6165
VARBINARY = 10262

_FIELD_TYPES = {
    257: FIELD_TYPE.TINY,
    770: FIELD_TYPE.TINY,
    259: FIELD_TYPE.SHORT,
    772: FIELD_TYPE.SHORT,
    261: FIELD_TYPE.INT24,
    774: FIELD_TYPE.INT24,
    263: FIELD_TYPE.LONG,
    776: FIELD_TYPE.LONG,
    INT64: FIELD_TYPE.LONGLONG,
    UINT64: FIELD_TYPE.LONGLONG,
    1035: FIELD_TYPE.FLOAT,
    FLOAT64: FIELD_TYPE.DOUBLE,
    2061: FIELD_TYPE.TIMESTAMP,
    2062: FIELD_TYPE.DATE,
    2063: FIELD_TYPE.TIME,
    2064: FIELD_TYPE.DATETIME,
    785: FIELD_TYPE.YEAR,
    DECIMAL: FIELD_TYPE.NEWDECIMAL,
    2073: FIELD_TYPE.BIT,
    2077: FIELD_TYPE.GEOMETRY,
    2078: FIELD_TYPE.JSON,
}
"""MySQL's type for each type of Vitess. All others are text, or bytes, of some length."""


def converter_of(field: Field) -> Converter | None:
    """Return a function from a column's bytes to a Python object; None to keep the bytes."""
    type_ = _FIELD_TYPES.get(field.type, FIELD_TYPE.VAR_STRING)
    convert = decoders.get(type_, through)
    if type_ in TEXT_TYPES:
        if field.charset == BINARY:
            return None if convert is through else convert
        return bytes.decode
    if convert is int or convert is float:
        return convert  # Both accept bytes.
    return bytes.decode if convert is through else partial(_convert_text, convert)


def _convert_text(convert: Callable[[str], Any], value: bytes) -> Any:
    return convert(value.decode())


def decode(rows: Iterable[Row], converters: list[Converter | None]) -> list[tuple[Any, ...]]:
    """Return rows as tuples of Python objects."""
    decoded = []
    for row in rows:
        values, end = row.values, 0
        made: list[Any] = []
        for length, convert in zip(row.lengths, converters, strict=True):
            if length < 0:
                made.append(None)
                continue
            start, end = end, end + length
            value = values[start:end]
            made.append(value if convert is None else convert(value))
        decoded.append(tuple(made))
    return decoded


def split(rows: Iterable[Row]) -> Iterator[list[bytes | None]]:
    """Yield the values of rows as they are."""
    for row in rows:
        values: list[bytes | None] = []
        end = 0
        for length in row.lengths:
            start, end = end, end + max(length, 0)
            values.append(None if length < 0 else row.values[start:end])
        yield values


def bind_variables(parameters: Mapping[str, Any]) -> dict[str, BindVariable]:
    """Return a statement's parameters in vtgate's format."""
    return {name: _bind_variable(value) for name, value in parameters.items()}


def _bind_variable(value: Any) -> BindVariable:
    if value is None:
        return BindVariable(type=NULL)
    if isinstance(value, int):
        return BindVariable(type=INT64 if value < 2**63 else UINT64, value=b"%d" % value)
    for kind, (type_, encode) in _ENCODINGS.items():
        if isinstance(value, kind):
            return BindVariable(type=type_, value=encode(value))
    raise TypeError(f"{type(value).__name__}: no value that MySQL has a type for")


def _literal(value: Any) -> bytes:
    """Return the literal that PyMySQL writes, without its quotes."""
    return str(encoders[type(value)](value)).strip("'").encode()


_ENCODINGS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    str: (VARCHAR, str.encode),
    bytes: (VARBINARY, bytes),
    float: (FLOAT64, lambda value: repr(value).encode()),
    Decimal: (DECIMAL, lambda value: format(value, "f").encode()),
    date: (VARCHAR, _literal),  # Also for a datetime, which is a subclass.
    time: (VARCHAR, _literal),
    timedelta: (VARCHAR, _literal),
}
