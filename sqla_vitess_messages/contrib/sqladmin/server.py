"""A server of its own for the admin of some queues."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqladmin import Admin
from sqladmin.authentication import AuthenticationBackend, login_required
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from .mounting import add_queues

__all__ = ["make_app"]

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "::1", "[::1]"]
"""What the pages of this computer are called in URLs. Under another name, which leads here too,
they would share their origin with whoever owns the name."""

SESSION_SECONDS = 12 * 3_600

WRONG_PASSWORD_SECONDS = 1.0
"""How long a wrong password takes, so that few can be tried."""


def make_app(engine: Engine | AsyncEngine, base: Any, password: str | None) -> Starlette:
    """Return the application.

    :param base: as in :func:`.add_queues`.
    :param password: None to let everybody in who comes by a name of this computer.
    """
    guard: Sequence[Middleware] = ()
    if password is None:
        guard = [Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)]
    app = Starlette(middleware=guard)
    admin = _QueuesAdmin(
        app,
        engine,
        base_url="/",
        title="Message queues",
        templates_dir=str(Path(__file__).parent / "login"),
        authentication_backend=None if password is None else _Password(password),
    )
    add_queues(admin, base)
    return app


class _QueuesAdmin(Admin):
    @login_required
    async def index(self, request: Request) -> Response:
        return RedirectResponse(request.url_for("admin:view-queues"), status_code=302)


class _Password(AuthenticationBackend):
    """Lets in who knows the password. A restart of the server logs everybody out."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        super().__init__(
            secrets.token_hex(32),
            session_cookie="queues_session",
            max_age=SESSION_SECONDS,
            same_site="lax",
        )

    async def login(self, request: Request) -> bool:
        form = await request.form()
        given = str(form.get("password", "")).encode()
        if not hmac.compare_digest(given, self._password):
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
            return False
        request.session["is_in"] = True
        return True

    async def logout(self, request: Request) -> bool:
        request.session.clear()
        return False  # So that the form is shown.

    async def authenticate(self, request: Request) -> bool:
        return bool(request.session.get("is_in"))
