"""The view of a queue: its pages, and what can be done with many messages, by POST alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from itertools import chain
from itertools import count as count_from
from urllib.parse import quote

from sqladmin import expose
from sqladmin.authorization import custom_action
from sqlalchemy import ColumnElement
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...rows.message import queue_table
from ...rows.reasons import describe_error
from ...table.options import queue_options
from .actions import ACTIONS, Action, apply, count
from .assets import install
from .matching import matching, selected
from .pages import QueuePages
from .sessions import in_session

__all__ = ["QueueAdmin"]

NOTICE = "queue_notice"
"""The cookie that tells what was done. The page's script shows it, and deletes it."""

MAX_NOTICE = 300
"""Its characters."""

PAUSE = "pause"
"""The action that an AuthorizationBackend allows or not, for both directions."""


class QueueAdmin(QueuePages):
    """The view of a queue: ``class MailAdmin(QueueAdmin, model=Mail)``.

    All settings of sqladmin's ModelView can be changed. Those for columns follow from the model by
    default. Of a message that nobody has, the payload and the priority can be edited.
    """

    def __init__(self) -> None:
        super().__init__()
        install(self._admin_ref)
        _identify(type(self), {view.identity for view in self._admin_ref.views})

    def allowed_actions(self, request: Request) -> dict[str, Action]:
        """Return what the user may do with messages, by the names in URLs."""
        return {
            name: action
            for name, action in ACTIONS.items()
            if self.has_permission(request, custom_action(name))
        }

    @property
    def can_pause(self) -> bool:
        """Whether the queue can be paused."""
        return queue_options(queue_table(self.model)).pausable

    def may_pause(self, request: Request) -> bool:
        """Return whether the user may pause the queue, and it can be."""
        return self.can_pause and self.has_permission(request, custom_action(PAUSE))

    @expose("/confirm/{action}", methods=["POST"])
    async def confirm_action(self, request: Request) -> Response:
        """Ask whether to do something with messages, and tell with how many."""
        name, action = self._chosen_action(request)
        ids, where = await self._chosen_messages(request)
        number = await in_session(self, lambda session: count(self.model, session, action, where))
        context = {
            "model_view": self,
            "title": self.name_plural,
            "name": name,
            "action": action,
            "number": number,
            "ids": ids,
            "back": self._list_url(request),
        }
        return await self.templates.TemplateResponse(request, "queues/confirm.html", context)

    @expose("/apply/{action}", methods=["POST"])
    async def apply_action(self, request: Request) -> Response:
        """Do something with messages, and go back to the list."""
        _name, action = self._chosen_action(request)
        _ids, where = await self._chosen_messages(request)

        def act(session: Session) -> str:
            number = apply(self.model, session, action, where)
            return f"{action.done} {number} {'message' if number == 1 else 'messages'}"

        told = await self._try(f"{action.label} has failed, maybe halfway", act)
        return _redirect(request, self._list_url(request), told)

    @expose("/pause", methods=["POST"])
    async def pause_queue(self, request: Request) -> Response:
        """Pause the queue."""
        return await self._set_paused(request, paused=True)

    @expose("/resume", methods=["POST"])
    async def resume_queue(self, request: Request) -> Response:
        """End the pause."""
        return await self._set_paused(request, paused=False)

    async def _set_paused(self, request: Request, *, paused: bool) -> Response:
        if not self.may_pause(request):
            raise HTTPException(403)

        def set_paused(session: Session) -> str:
            (self.model.pause if paused else self.model.resume)(session)
            session.commit()
            return f"{'Paused' if paused else 'Resumed'} {queue_table(self.model).name}"

        told = await self._try(f"{'Pause' if paused else 'Resume'} has failed", set_paused)
        form = await request.form()
        overview = request.url_for("admin:view-queues") if form.get("overview") else None
        return _redirect(request, overview or self._list_url(request), told)

    async def _try(self, failed: str, change: Callable[[Session], str]) -> str:
        """Return what is told of a change: what was done, or why it has failed."""
        try:
            return await in_session(self, change)
        except SQLAlchemyError as error:
            return f"{failed}: {describe_error(error)}"

    def _chosen_action(self, request: Request) -> tuple[str, Action]:
        name = request.path_params["action"]
        if name not in ACTIONS:
            raise HTTPException(404)
        if name not in self.allowed_actions(request):
            raise HTTPException(403)
        return name, ACTIONS[name]

    async def _chosen_messages(
        self, request: Request
    ) -> tuple[list[str] | None, ColumnElement[bool]]:
        """Return the selected ids, or None for all that match, and the condition of either."""
        form = await request.form()
        if form.get("all"):
            return None, await matching(self, request)
        ids = [str(value) for value in form.getlist("ids")]
        return ids, selected(self, request, ids)

    def _list_url(self, request: Request) -> URL:
        """Return the URL of the list, with the filter and the search of the request."""
        url = request.url_for("admin:list", identity=self.identity)
        return url.replace(query=request.url.query)


def _identify(view: type[QueueAdmin], taken: Container[str]) -> None:
    """Name a view in URLs and in the menu after its table, if its class's name is taken."""
    if view.identity not in taken:
        return
    table = queue_table(view.model).name
    view.name, view.name_plural = f"{view.name} ({table})", f"{view.name_plural} ({table})"
    identity = re.sub(r"[^\w-]+", "-", table).lower()
    numbered = (f"{identity}-{number}" for number in count_from(2))
    view.identity = next(name for name in chain([identity], numbered) if name not in taken)


def _redirect(request: Request, url: URL, told: str) -> Response:
    response = RedirectResponse(url, status_code=303)
    path = request.url_for("admin:index").path
    response.set_cookie(NOTICE, quote(told[:MAX_NOTICE]), max_age=60, path=path, samesite="strict")
    return response
