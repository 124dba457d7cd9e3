"""Which messages a command is about: conditions of ``--state`` and ``--where``, for each queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, and_, inspect
from sqlalchemy.orm import Mapper

from ..errors import InvalidArgument
from ..mixin import MessageQueueMixin
from ..rows.message import NEXT_DUE_ATTRIBUTE, queue_table
from ..rows.states import conditions
from ..shown import shown
from .values import from_text

__all__ = ["Selected", "known_states", "mapped_columns", "select_models"]

Selected = list[tuple[type[MessageQueueMixin], ColumnElement[bool]]]
"""Models, each with the condition of its messages."""


def mapped_columns(model: type[MessageQueueMixin]) -> dict[str, Column[Any]]:
    """Return the columns of a queue by the attributes of its messages that users know."""
    mapper: Mapper[Any] = inspect(model)
    table = queue_table(model)
    return {
        attribute.key: attribute.columns[0]
        for attribute in mapper.column_attrs
        if isinstance(attribute.columns[0], Column)
        and attribute.columns[0].table is table
        and attribute.key != NEXT_DUE_ATTRIBUTE
    }


def known_states(model: type[MessageQueueMixin]) -> list[str]:
    """Return the states that messages of a queue can be in."""
    table = queue_table(model)
    return list(conditions(table, table))


def select_models(
    models: Iterable[type[MessageQueueMixin]],
    states: Sequence[str],
    where: Sequence[str] | None,
) -> Selected:
    """Return the models that have the columns of ``--where`` and a state, with their conditions.

    :param states: the one that was asked for, or those that the command is for.
    :raises InvalidArgument: when no model has them, or for a value that doesn't suit its column.
    """
    pairs = [_pair(text) for text in where or ()]
    models = list(models)
    with_columns = [m for m in models if all(name in _names(m) for name, _ in pairs)]
    if not with_columns:
        columns = ", ".join(dict.fromkeys(name for model in models for name in _names(model)))
        names = ", ".join(name for name, _ in pairs)
        raise InvalidArgument(f"--where: no queue has {names}; there is {columns}")
    selected = [model for model in with_columns if not set(states).isdisjoint(known_states(model))]
    if not selected:
        known = dict.fromkeys(state for model in with_columns for state in known_states(model))
        raise InvalidArgument(
            f"--state {', '.join(map(shown, states))}: no queue has it; there is {', '.join(known)}"
        )
    return [(model, _condition(model, states, pairs)) for model in selected]


def _condition(
    model: type[MessageQueueMixin], states: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> ColumnElement[bool]:
    """Return the condition of a queue's messages.

    :param states: of which those count that the queue knows.
    :param pairs: attributes, or columns, and texts of their values.
    """
    known = known_states(model)
    found: list[ColumnElement[bool]] = [model.state.in_([one for one in states if one in known])]
    names = _names(model)
    for name, text in pairs:
        found.append(names[name] == from_text(names[name], f"--where {name}", text))
    return and_(*found)


def _names(model: type[MessageQueueMixin]) -> dict[str, Column[Any]]:
    """Return the columns by their names and by the attributes that they are mapped to."""
    columns = mapped_columns(model)
    return {column.name: column for column in columns.values()} | columns


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidArgument(f"--where {shown(text)}: expected COLUMN=VALUE")
    return name.strip(), value
