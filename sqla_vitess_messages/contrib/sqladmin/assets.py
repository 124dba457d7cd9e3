"""What the pages of queues need in an Admin: templates, static files, and a guard."""

from __future__ import annotations

from jinja2 import ChoiceLoader, PackageLoader
from sqladmin.application import BaseAdmin
from starlette.staticfiles import StaticFiles

from .origins import SameOriginMiddleware

__all__ = ["install"]

STATICS = "queue-statics"
"""The name of the route of the static files."""


def install(admin: BaseAdmin) -> None:
    """Add to an Admin what the pages of queues need, unless it has that.

    The guard protects its other pages too: sqladmin's own forms have none.
    """
    routes = admin.admin.router.routes
    if any(getattr(route, "name", None) == STATICS for route in routes):
        return
    package = __package__
    assert package is not None
    files = StaticFiles(packages=[(package, "static")])
    admin.admin.mount(f"/{STATICS}", files, name=STATICS)
    loader = admin.templates.env.loader
    assert loader is not None
    admin.templates.env.loader = ChoiceLoader([loader, PackageLoader(package)])
    admin.admin.add_middleware(SameOriginMiddleware)
