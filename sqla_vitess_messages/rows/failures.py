"""What a row tells of its message's last failure, where the model has MessageFailuresMixin.

``failed_epoch`` is the row's epoch as of that failure. Every delivery changes the epoch, Vitess's
own too. So as long as the two are the same, nobody has the message: it waits for its retry.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, FromClause, Table

from .. import clock
from .reasons import REASON_COLUMN

__all__ = ["FAILED_EPOCH", "FAILURES_KEY", "TIME_FAILED", "are_kept", "failed_epoch", "record"]

FAILURES_KEY = "sqla_vitess_messages_failures"
"""The key in ``Column.info`` of the columns that MessageFailuresMixin defines."""

TIME_FAILED = "time_failed"
FAILED_EPOCH = "failed_epoch"


def failed_epoch(rows: FromClause) -> ColumnElement[int] | None:
    """Return the column with the epoch of the last failure.

    :param rows: a queue's table, or an alias of it.
    :return: None where the model has no MessageFailuresMixin.
    """
    column = rows.c.get(FAILED_EPOCH)
    if column is None or not any(FAILURES_KEY in base.info for base in column.base_columns):
        return None
    return column


def are_kept(table: Table) -> bool:
    """Return whether a queue keeps the last failure of each message."""
    return failed_epoch(table) is not None


def record(table: Table) -> dict[str, Any]:
    """Return the values by which an UPDATE records a failure, for which there is no reason."""
    if not are_kept(table):
        return {}
    return {
        REASON_COLUMN: None,
        TIME_FAILED: clock.database_now(),
        FAILED_EPOCH: table.c.epoch,
    }
