"""The payload columns that a class declares, before it is mapped to any table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import get_annotations
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from sqlalchemy import Column
from sqlalchemy.orm import Mapped, MappedColumn, declared_attr
from sqlalchemy.sql.schema import ScalarElementColumnDefault

__all__ = ["Field", "payload_fields"]

_MAPPED = re.compile(r"(\w+\.)*Mapped\[")
"""How an annotation begins that is a text because its names can't be resolved."""

_NONE = re.compile(r"\bNone\b|\bOptional\b")


@dataclass(frozen=True)
class Field:
    """A payload column.

    :param is_required: whether it needs a value, because neither a default nor NULL can take its
        place.
    :param default: the value that the column has by default, if it is a constant.
    :param is_filled: whether the INSERT fills in a value that is not given: a function's, or one of
        the database.
    """

    is_required: bool
    default: Any
    is_filled: bool


def payload_fields(cls: type[Any], until: type[Any]) -> dict[str, Field]:
    """Return the payload columns of a class by their names, those of its bases first.

    :param until: the base whose attributes, and those of its own bases, are none.
    """
    fields: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, until) and base is not until:
            fields.update(_declared(base))
    return fields


def _declared(cls: type[Any]) -> Iterator[tuple[str, Field]]:
    """Yield what a class itself declares."""
    annotations = get_annotations(cls)
    for name in dict.fromkeys((*annotations, *vars(cls))):
        value = vars(cls).get(name)
        annotation = _evaluate(cls, annotations.get(name))
        if isinstance(value, (MappedColumn, Column)) or (value is None and _is_mapped(annotation)):
            yield name, _field(value, annotation)
        elif isinstance(value, declared_attr):
            # What column it is, only a mapped class can tell.
            yield name, Field(is_required=False, default=None, is_filled=True)


def _field(value: MappedColumn[Any] | Column[Any] | None, annotation: Any) -> Field:
    inner = get_args(annotation)[0] if get_args(annotation) else annotation
    is_optional = _is_optional(inner)
    for given in (value, *_annotated_columns(inner)):
        if given is None:
            continue
        column = given.column if isinstance(given, MappedColumn) else given
        if isinstance(given, Column) or given._has_nullable:
            is_optional = bool(column.nullable)
        if isinstance(column.default, ScalarElementColumnDefault):
            return Field(is_required=False, default=column.default.arg, is_filled=False)
        if column.default is not None or column.server_default is not None:
            return Field(is_required=False, default=None, is_filled=True)
    return Field(is_required=not is_optional, default=None, is_filled=False)


def _evaluate(cls: type[Any], annotation: Any) -> Any:
    """Return an annotation that may be a text as an object, where its names are known."""
    if not isinstance(annotation, str):
        return annotation
    try:
        # As typing.get_type_hints does it, which fails for all if one can't be evaluated.
        return eval(annotation, vars(sys.modules[cls.__module__]), dict(vars(cls)))  # noqa: S307
    except (NameError, AttributeError, TypeError, SyntaxError):
        return annotation


def _is_mapped(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return _MAPPED.match(annotation) is not None
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapped)


def _is_optional(annotation: Any) -> bool:
    """Return whether None is among the values of what is mapped."""
    annotation = getattr(annotation, "__value__", annotation)  # Of a "type" statement.
    annotation = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(annotation, str):
        return _NONE.search(annotation) is not None
    if get_origin(annotation) is Annotated:
        return _is_optional(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def _annotated_columns(annotation: Any) -> Iterator[MappedColumn[Any]]:
    """Yield what ``Annotated[int, mapped_column(...)]`` says about the column."""
    if get_origin(annotation) is Annotated:
        yield from (part for part in get_args(annotation)[1:] if isinstance(part, MappedColumn))
