"""Which messages a page is about: those that its filter and its search match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqladmin import ModelView
from sqlalchemy import ColumnElement, Select, String, cast, false, or_, true
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ...mixin import MessageQueueMixin
from ...rows.message import queue_table

__all__ = ["matching", "parse_id", "search_condition", "selected"]

Model = type[MessageQueueMixin]

MAX_ID = 2**63 - 1


def parse_id(text: str) -> int:
    """Return an id from a URL or a form.

    :param text: the id, or sqladmin's identifier of a row, the primary key, which ends with it.
    """
    message_id = _as_id(text.rpartition(";")[2])
    if message_id is None:
        raise HTTPException(404, "No message has such an id.")
    return message_id


def _as_id(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    return number if (number := int(text)) <= MAX_ID else None


async def matching(view: ModelView, request: Request) -> ColumnElement[bool]:
    """Return the condition of the messages that the filter and the search of a URL match."""
    statement = view.list_query(request)
    for chosen in view.get_filters():
        filtering: Any = chosen
        value = request.query_params.get(filtering.parameter_name)
        if value is None:
            continue
        arguments = [value, view.model]
        if getattr(filtering, "has_operator", False):
            operator = request.query_params.get(f"{filtering.parameter_name}_op")
            if not operator:
                continue
            arguments.insert(0, operator)
        statement = await filtering.get_filtered_query(statement, *arguments)
    if term := request.query_params.get("search"):
        statement = view.search_query(statement, term)
    return _condition(view.model, statement)


def selected(view: ModelView, request: Request, ids: Iterable[str]) -> ColumnElement[bool]:
    """Return the condition of the messages that have an id, and that the user may see."""
    chosen: ColumnElement[bool] = queue_table(view.model).c.id.in_([parse_id(text) for text in ids])
    return _condition(view.model, view.list_query(request).where(chosen))


def _condition(model: Model, statement: Select[Any]) -> ColumnElement[bool]:
    table = queue_table(model)
    if statement.get_final_froms() != [table]:  # The user's own query has joined others.
        return table.c.id.in_(statement.with_only_columns(table.c.id).order_by(None))
    return true() if statement.whereclause is None else statement.whereclause


def search_condition(model: Model, names: Sequence[str], term: str) -> ColumnElement[bool]:
    """Return the condition that a text is in one of some attributes, or is the message's id.

    :param names: of attributes.
    """
    conditions: list[ColumnElement[bool]] = [
        cast(getattr(model, name), String).icontains(term, autoescape=True) for name in names
    ]
    if (message_id := _as_id(term.strip())) is not None:
        conditions.append(model.id == message_id)
    return or_(false(), *conditions)
