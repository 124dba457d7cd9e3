"""The overview: the page with the state of each queue."""

from __future__ import annotations

from typing import Any, ClassVar

from sqladmin import BaseView, expose
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from ... import clock
from ...rows.message import queue_table
from ...rows.reasons import describe_error
from .plots import plot, rates
from .sampling import INTERVAL, History, Sampler
from .sessions import in_session
from .views import QueueAdmin

__all__ = ["Overview"]


class Overview(BaseView):
    """A card for each queue. The page's script fetches the cards again and again."""

    name = "Queues"
    icon = "fa-solid fa-gauge"
    sampler: ClassVar[Sampler]

    # sqladmin leads the menu to the first method.
    @expose("/queues", identity="queues")
    async def page(self, request: Request) -> Response:
        """Show the page."""
        context = await self._context(request)
        return await self.templates.TemplateResponse(request, "queues/overview.html", context)

    @expose("/queues/cards", identity="queue-cards")
    async def cards(self, request: Request) -> Response:
        """Return the cards, as the page's script puts them in."""
        context = await self._context(request)
        return await self.templates.TemplateResponse(request, "queues/cards.html", context)

    async def _context(self, request: Request) -> dict[str, Any]:
        histories = await self.sampler.look()
        cards = [await _card(h) for h in histories if h.view.is_accessible(request)]
        return {"title": self.name, "cards": cards, "interval": INTERVAL}


async def _card(history: History) -> dict[str, Any]:
    view, samples, error = history.view, list(history.samples), history.error
    assert isinstance(view, QueueAdmin)
    is_paused = False
    try:
        is_paused = view.can_pause and await in_session(view, view.model.is_paused)
    except SQLAlchemyError as failure:
        error = error or describe_error(failure)
    return {
        "view": view,
        "queue": queue_table(view.model).name,
        "stats": samples[-1].stats if samples else None,
        "rates": rates(samples),
        "plot": plot(samples, clock.now()),
        "is_paused": is_paused,
        "error": error,
    }
