"""A column for what travels with a message and isn't its payload, such as a trace's context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

__all__ = ["MessageHeadersMixin"]


def _headers(_cls):  # type: ignore[no-untyped-def]
    # Without an annotation, which would make it a field of a dataclass.
    return mapped_column("headers", JSON(none_as_null=True), nullable=True)


class MessageHeadersMixin:
    """Gives a queue the column ``headers``. Put it in front of MessageQueueMixin."""

    if TYPE_CHECKING:
        headers: Mapped[dict[str, Any] | None]
        """Names and values, JSON; None without any."""
    else:
        headers = declared_attr(_headers)
