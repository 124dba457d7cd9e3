"""Whether a subscriber may hand out messages: it may not while its queue is paused."""

from __future__ import annotations

import time
from math import inf

from sqlalchemy import Engine, Table

from ..logs import get_logger
from ..rows.pausing import find_pause
from ..table.options import queue_options
from ..transports.engines import READS_ONLY

__all__ = ["PauseGate"]

CHECK_INTERVAL = 0.5
"""Seconds between two checks: a queue has to be paused everywhere within a second."""

log = get_logger(__name__)


class PauseGate:
    """Is closed while the queue is paused, as of the last check.

    :param engine: is the subscriber's own.
    """

    def __init__(self, table: Table, engine: Engine) -> None:
        self._table = table
        self._engine = engine
        self.due_at = -inf if queue_options(table).pausable else inf
        """When to check next, on :func:`time.monotonic`; never for a queue that can't be paused."""
        self.is_closed = False

    @property
    def is_due(self) -> bool:
        """Whether it is time for a check."""
        return time.monotonic() >= self.due_at

    def check(self) -> None:
        """Query whether the queue is paused.

        :raises sqlalchemy.exc.DBAPIError: when the connection is lost.
        """
        with self._engine.connect().execution_options(**{READS_ONLY: True}) as connection:
            is_paused = connection.scalar(find_pause(self._table)) is not None
        self.due_at = time.monotonic() + CHECK_INTERVAL
        if is_paused is not self.is_closed:
            what = "paused" if is_paused else "resumed"
            log.info("the queue is %s", what, extra={"queue": self._table.name})
        self.is_closed = is_paused
