"""Add the queues of a declarative base to an Admin."""

from __future__ import annotations

from collections.abc import Iterator
from types import new_class
from typing import Any

from sqladmin import Admin
from sqlalchemy import MetaData

from ...errors import InvalidArgument, InvalidArgumentType
from ...mixin import MessageQueueMixin
from ...shown import shown
from .overview import Overview
from .sampling import Sampler
from .views import QueueAdmin

__all__ = ["add_queues"]

Model = type[MessageQueueMixin]


def add_queues(admin: Admin, base: Any) -> None:
    """Add a view for each queue, and an overview with the state of all of them.

    Queues that have a :class:`QueueAdmin` in the admin already keep it.

    :param admin: sqladmin's, with an Engine or an AsyncEngine.
    :param base: a declarative base or a MetaData, for all of its queues; or a queue's class.
    :raises InvalidArgument: when it has no queues.
    :raises InvalidArgumentType: for anything else.
    """
    if not isinstance(admin, Admin):
        raise InvalidArgumentType(f"admin={shown(admin)}: expected an sqladmin.Admin")
    models = list(_models(base))
    overview = _overview(admin)  # First, to be first in the menu.
    existing = {view.model for view in admin.views if isinstance(view, QueueAdmin)}
    for model in models:
        if model not in existing:
            admin.add_view(new_class(f"{model.__name__}Admin", (QueueAdmin,), {"model": model}))
    for view in admin.views:
        if isinstance(view, QueueAdmin) and view.model in models:
            overview.sampler.add(view)


def _overview(admin: Admin) -> Overview:
    """Return the overview of an Admin, which is added if there is none."""
    if not any(isinstance(view, Overview) for view in admin.views):
        admin.add_view(type("Overview", (Overview,), {"sampler": Sampler()}))
    return next(view for view in admin.views if isinstance(view, Overview))


def _models(base: Any) -> Iterator[Model]:
    """Yield the classes of queues, in the order of their definition."""
    if (
        isinstance(base, type)
        and issubclass(base, MessageQueueMixin)
        and hasattr(base, "__table__")
    ):
        yield base
        return
    metadata = getattr(base, "metadata", base)
    if not isinstance(metadata, MetaData):
        raise InvalidArgumentType(
            f"base={shown(base)}: expected a declarative base, a MetaData or a queue's class"
        )
    found = [
        model
        for model in _subclasses(MessageQueueMixin)
        if "__table__" in vars(model) and model.__table__ in metadata.tables.values()
    ]
    if not found:
        raise InvalidArgument(f"base={shown(base)}: has no models with MessageQueueMixin")
    yield from found


def _subclasses(cls: Model) -> Iterator[Model]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
