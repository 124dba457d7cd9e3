"""The list of a queue's messages, a page for each, and forms: what shows, and edits payload."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterable, AsyncIterator
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

from sqladmin import ModelView
from sqladmin.helpers import default_encoder
from sqladmin.pagination import Pagination
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from wtforms.validators import NumberRange

from ...mixin import MessageQueueMixin
from ...rows.message import queue_table
from ...texts import encodable, in_json
from .columns import settings
from .forms import FormConverter, changed
from .loading import load_messages
from .matching import matching, parse_id, search_condition
from .sessions import in_session

__all__ = ["QueuePages"]

EDITABLE = ("ready", "scheduled", "retrying", "dead")
"""The states in which nobody has a message."""

MAX_EXPORTED = 10_000


class QueuePages(ModelView):
    """A ModelView of a queue's messages."""

    model: ClassVar[type[MessageQueueMixin]]

    icon = "fa-solid fa-envelope"
    page_size = 25
    can_delete = False  # Cancel does it, for many messages too.
    export_types: ClassVar[list[str]] = ["csv", "json"]
    export_max_rows = MAX_EXPORTED
    list_template = "queues/list.html"
    details_template = "queues/details.html"
    form_converter = FormConverter
    form_args: ClassVar[dict[str, Any]] = {
        "priority": {"validators": [NumberRange(-128, 127)], "default": 50}
    }

    def __init__(self) -> None:
        cls = type(self)
        for name, default in settings(cls.model).items():
            given = getattr(cls, name)
            if isinstance(default, dict):
                setattr(cls, name, {**default, **given})
            elif not given:
                setattr(cls, name, default)
        super().__init__()

    def search_placeholder(self) -> str:
        """Return the text of an empty search."""
        return ", ".join(["Id", *filter(None, [super().search_placeholder()])])

    def search_query(self, stmt: Select[Any], term: str) -> Select[Any]:
        """Return the query of messages with a text in their payload, or with an id."""
        return stmt.where(search_condition(self.model, self._search_fields, term))

    async def list(self, request: Request) -> Pagination:
        """Return a page of the messages that match the filter and the search."""
        size = self.validate_page_number(request.query_params.get("pageSize"), self.page_size)
        size = min(max(size, 1), max(self.page_size_options))
        page = self.validate_page_number(request.query_params.get("page"), 1)
        where = await matching(self, request)

        def load(session: Session) -> Pagination:
            counting = select(func.count()).select_from(queue_table(self.model)).where(where)
            number = session.scalar(counting) or 0
            shown = min(max(page, 1), Pagination.max_page(number, size))
            rows = self._load(session, request, where, limit=size, offset=(shown - 1) * size)
            return Pagination(rows=rows, page=shown, page_size=size, count=number)

        return await in_session(self, load)

    async def get_model_objects(
        self, request: Request, limit: int | None = 0
    ) -> builtins.list[Any]:
        """Return the messages to export: those that match the filter and the search."""
        where = await matching(self, request)
        most = min(limit or MAX_EXPORTED, MAX_EXPORTED)
        return await in_session(
            self, partial(self._load, request=request, where=where, limit=most, offset=0)
        )

    def _load(
        self,
        session: Session,
        request: Request,
        where: ColumnElement[bool],
        limit: int,
        offset: int,
    ) -> builtins.list[Any]:
        # The ids come first, as a database sorts and skips them more easily than whole rows.
        ids = self.sort_query(select(self.model.id).where(where), request)
        found = session.scalars(ids.limit(limit).offset(offset)).all()
        return load_messages(self.model, session, found)

    async def get_object_for_details(self, request: Request) -> Any:
        """Return the message that the URL names."""
        finding = self.details_query(request).with_only_columns(self.model.id)
        found = await in_session(
            self,
            lambda session: load_messages(self.model, session, session.scalars(finding).all()),
        )
        if not found:
            raise HTTPException(404, "No such message: it was purged or cancelled, if it existed.")
        return found[0]

    def _stmt_by_identifier(self, identifier: str) -> Select[Any]:
        # sqladmin's own names the whole primary key, and users know the id alone.
        return select(self.model).where(self.model.id == parse_id(identifier))

    async def update_model(self, request: Request, pk: str, data: dict[str, Any]) -> Any:
        """Save what a user has changed in the form."""
        form = await self.scaffold_form(self._form_edit_rules)
        message = await self.get_object_for_edit(request)
        shown = form(data=await self.get_form_data_for_edit(message))
        posted = form(await request.form())
        return await super().update_model(request, pk, changed(data, shown, posted))

    async def get_prop_value(self, obj: Any, prop: str) -> Any:
        """Return a value that every format of exports can contain.

        An id is a string, because JavaScript's numbers have 53 bits.
        """
        value = await super().get_prop_value(obj, prop)
        if isinstance(value, (float, dict, list)):
            return in_json(value, default_encoder)
        is_text = prop == "id" or isinstance(value, str)
        if is_text or (isinstance(value, Decimal) and not value.is_finite()):
            return encodable(str(value))
        return value

    async def export_data(
        self, data: builtins.list[Any], export_type: str = "csv", request: Request | None = None
    ) -> StreamingResponse:
        """Return the exported messages, also those with characters that can't be encoded."""
        response = await super().export_data(data, export_type, request)
        if export_type == "json":
            response.body_iterator = _encodable(response.body_iterator)
        return response

    async def check_can_edit(self, request: Request, model: Any) -> bool:
        """Return whether a message may be edited: unless somebody has it, or it is acked.

        When it is saved, that is by the database's clock.
        """
        state = model.state
        if request.method == "POST":
            asking = select(self.model.state).where(self.model.id == model.id)
            state = await in_session(self, lambda session: session.scalar(asking))
        return state in EDITABLE and await super().check_can_edit(request, model)


async def _encodable(texts: AsyncIterable[Any]) -> AsyncIterator[str]:
    async for text in texts:
        yield encodable(text)
