"""A column for metadata that accompanies a message, such as the context of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

__all__ = ["MessageHeadersMixin"]


def _headers(_cls):  # type: ignore[no-untyped-def]
    # Not annotated, because an annotation would make it a field of a dataclass.
    return mapped_column("headers", JSON(none_as_null=True), nullable=True)


class MessageHeadersMixin:
    """Adds the column ``headers`` to a queue. Put it before MessageQueueMixin among the bases."""

    if TYPE_CHECKING:
        headers: Mapped[dict[str, Any] | None]
        """Names and values, stored as JSON; None when there are none."""
    else:
        headers = declared_attr(_headers)
