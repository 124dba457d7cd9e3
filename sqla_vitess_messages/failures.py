"""Columns for a message's last failure: why and when, and whether it waits for its retry."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ColumnElement, Text
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from .rows import reasons
from .rows.failures import FAILED_EPOCH, FAILURES_KEY, TIME_FAILED
from .rows.hybrids import as_datetime, time_column

__all__ = ["MessageFailuresMixin"]


def _column(name: str, type_: Any) -> Any:
    # Not annotated, because an annotation would make it a field of a dataclass.
    def column(_cls):  # type: ignore[no-untyped-def]
        return mapped_column(name, type_, nullable=True, info={FAILURES_KEY: True})

    return declared_attr(column)


class MessageFailuresMixin:
    """Keeps the last failure of each message. Put it before MessageQueueMixin among the bases.

    Each ``fail`` and each ``retry`` writes it, a worker's own with the exception as the reason. So
    the last error of a message that waits can be looked at, and ``state`` is ``"retrying"`` for one
    that waits for its retry, in contrast to ``"leased"`` for one that somebody has.
    """

    if TYPE_CHECKING:
        fail_reason: Mapped[str | None]
        """Why it failed last; None if it never did, or without a reason."""
        time_failed: Mapped[int | None]
        """When it failed last, in ns since 1970."""
        failed_epoch: Mapped[int | None]
        """The row's epoch then. While it is still the row's epoch, nobody has the message."""
    else:
        fail_reason = _column(reasons.REASON_COLUMN, Text)
        time_failed = _column(TIME_FAILED, BigInteger)
        failed_epoch = _column(FAILED_EPOCH, BigInteger)

    @hybrid_property
    def failed_at(self) -> datetime | None:
        """When it failed last, in UTC; None if it never did. Also for conditions in SQL."""
        return as_datetime(self.time_failed)

    @failed_at.inplace.expression
    @classmethod
    def _failed_at_in_sql(cls) -> ColumnElement[datetime | None]:
        return time_column(cls, TIME_FAILED)
