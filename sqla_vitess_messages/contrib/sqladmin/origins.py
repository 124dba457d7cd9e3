"""Refuse changes that a page of another site asks a browser for."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SameOriginMiddleware"]

SAFE = ("GET", "HEAD", "OPTIONS")
"""The methods that change nothing."""


class SameOriginMiddleware:
    """Answers with 403 to what another origin has sent, whatever the user authenticates by.

    Browsers tell the origin of each request, and no page can forge it. Only pages of the same
    origin may also show these in a frame, where a user could be made to click.

    Source: https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html,
    "Fetch Metadata headers".
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] not in SAFE and not _is_same_origin(Headers(scope=scope)):
            refusal = PlainTextResponse("A page of another origin sent this.", status_code=403)
            await refusal(scope, receive, send)
            return

        async def send_framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Frame-Options", "SAMEORIGIN")
                headers.setdefault("Content-Security-Policy", "frame-ancestors 'self'")
            await send(message)

        await self._app(scope, receive, send_framed)


def _is_same_origin(headers: Headers) -> bool:
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")  # "none" is the user, and not a page.
    origin = headers.get("origin")
    # Browsers omit Sec-Fetch-Site without TLS. What has neither of the two is no browser.
    return origin is None or urlsplit(origin).netloc == headers.get("host")
