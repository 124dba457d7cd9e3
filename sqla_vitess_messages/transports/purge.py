"""Delete messages that were acked long ago, a chunk at a time, so that deliveries go on between.

The tablets of Vitess do this themselves. On other databases subscribers do it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, Table, bindparam, delete, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from .. import clock
from ..logs import get_logger
from ..rows.queries import by_index, id_condition
from ..rows.transient import is_deadlock
from ..table.layouts import LAYOUTS
from ..table.options import queue_options
from ..table.reflect import foreign_keys_to
from ..vitess.server import is_sqlite

__all__ = ["Purger"]

LARGEST_CHUNK = 500
"""Rows deleted by one transaction, as in Vitess."""

FIRST_CHUNK = 10
"""Rows deleted by the first transaction. The next ones delete more if that was fast."""

CHUNK_TIME = 0.04
"""Seconds that the DELETE of one chunk may take. After one that takes longer, a chunk is smaller:
rows with large columns, or with foreign keys that refer to them, take longer."""

REST = 2
"""How long the table is left to others between two chunks, in multiples of a chunk's time."""

LONGEST_REST = 0.5
"""Seconds that it is left to others at most."""

ONE_BY_ONE_FOR = 10.0
"""Seconds for which each row has a statement of its own, after one for many has failed: because of
a row that can't be deleted, or in a small table, which MySQL scans, of any that another transaction
has locked."""

RETRY_AFTER = 600.0
"""Seconds until rows that couldn't be deleted are tried again, and are warned of again."""

log = get_logger(__name__)


class Purger:
    """Deletes the messages of one table that were acked longer ago than ``purge_after``.

    Rows that can't be deleted, because others refer to them, are passed over until
    :data:`RETRY_AFTER`. The rest of their chunk is deleted.

    :param engine: is the subscriber's own.
    """

    def __init__(self, table: Table, engine: Engine) -> None:
        self._table = table
        self._engine = engine
        options = queue_options(table)
        self._purge_after = clock.to_nanoseconds(options.purge_after)
        self._interval = options.poller_interval
        self._next = time.monotonic() + self._interval
        self._size = FIRST_CHUNK
        self._one_by_one_until = 0.0
        # A pass goes on at this time_acked, after the rows of the same time that are passed over.
        self._since = self._passed_over = 0
        self._restart_at = math.inf
        self._choosing = _choose(table)
        self._deleting = delete(table).where(id_condition(table))

    def run(self) -> float:
        """Delete a chunk if it is time for one.

        :return: seconds until it is time for the next.
        :raises sqlalchemy.exc.DBAPIError: when the connection is lost.
        """
        started = time.monotonic()
        if started >= self._next:
            more = self.purge()
            ended = time.monotonic()
            rest = min(REST * (ended - started), LONGEST_REST)
            self._next = ended + (rest if more else self._interval)
        return max(self._next - time.monotonic(), 0.0)

    def purge(self) -> bool:
        """Delete a chunk.

        :return: whether there may be more.
        :raises sqlalchemy.exc.DBAPIError: when the connection is lost.
        """
        if time.monotonic() >= self._restart_at:
            self._since = self._passed_over = 0
            self._restart_at = math.inf
        rows: Sequence[Row[Any]] = ()
        try:
            with self._engine.begin() as connection:
                rows = self._lock_some(connection)
                started = time.monotonic()
                tried, blocked = self._delete(connection, rows)
                seconds = time.monotonic() - started
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            return self._note_failure(rows, error)
        self._pass_over(tried, blocked)
        if blocked:
            self._one_by_one_until = time.monotonic() + ONE_BY_ONE_FOR
        is_last = len(tried) < self._size and len(tried) == len(rows)
        if seconds > CHUNK_TIME:
            self._size = max(self._size // 2, 1)
        elif seconds < CHUNK_TIME / 2:
            self._size = min(self._size * 2, LARGEST_CHUNK)
        return not is_last

    @property
    def _is_one_by_one(self) -> bool:
        return time.monotonic() < self._one_by_one_until

    def _lock_some(self, connection: Connection) -> Sequence[Row[Any]]:
        before = clock.now() - self._purge_after
        place = {"_since": self._since, "_offset": self._passed_over}
        values = place | {"_before": before, "_limit": self._size}
        return connection.execute(self._choosing, values).all()

    def _delete(
        self, connection: Connection, rows: Sequence[Row[Any]]
    ) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
        """Delete rows, and return those that were tried, and those of them that failed.

        A statement that fails leaves the transaction as it was.
        """
        if not self._is_one_by_one:
            if rows:
                connection.execute(self._deleting, {"_ids": [row.id for row in rows]})
            return rows, []
        blocked = []
        end = time.monotonic() + CHUNK_TIME
        for number, row in enumerate(rows, 1):
            try:
                connection.execute(self._deleting, {"_ids": [row.id]})
            except DBAPIError as error:
                if error.connection_invalidated or is_deadlock(error):
                    raise
                blocked.append(row)
                self._warn_once(connection, row, error)
            if time.monotonic() > end:
                return rows[:number], blocked
        return rows, blocked

    def _note_failure(self, rows: Sequence[Row[Any]], error: DBAPIError) -> bool:
        """Make the next chunk find the rows that are in the way."""
        if not rows:  # Somebody else has locked the whole database, as in SQLite.
            log.info("not purged: %s", error.orig, extra={"queue": self._table.name})
            return False
        if self._is_one_by_one:  # The COMMIT has failed: SQLite can check foreign keys as late.
            self._size = max(len(rows) // 2, 1)
            if len(rows) == 1:
                self._warn_once(self._engine, rows[0], error)
                self._pass_over(rows, rows)
        self._one_by_one_until = time.monotonic() + ONE_BY_ONE_FOR
        return True

    def _pass_over(self, tried: Sequence[Row[Any]], blocked: Sequence[Row[Any]]) -> None:
        """Go on after rows that couldn't be deleted."""
        if blocked:
            last = tried[-1].time_acked
            before = self._passed_over if last == self._since else 0
            self._passed_over = before + sum(row.time_acked == last for row in blocked)
            self._since = last

    def _warn_once(self, bind: Connection | Engine, row: Row[Any], error: DBAPIError) -> None:
        """Log what the first row of a pass that can't be deleted has met."""
        if self._restart_at < math.inf:
            return
        self._restart_at = time.monotonic() + RETRY_AFTER
        remedy = ""
        if isinstance(error, IntegrityError):
            remedy = "; delete what refers to it first, or declare ON DELETE CASCADE or SET NULL"
            if is_sqlite(self._engine.dialect):  # Its error names neither table nor constraint.
                with suppress(DBAPIError):
                    keys = foreign_keys_to(bind, self._table)
                    remedy = f", by {' or '.join(keys)}{remedy}"
        log.warning(
            "acked messages can't be purged, such as %d: %s%s", row.id, error.orig, remedy,
            extra={"queue": self._table.name, "message_id": row.id},
        )  # fmt: skip


def _choose(table: Table) -> Select[Any]:
    """Return the SELECT that locks rows to delete, in the order of an index."""
    columns = table.c
    chosen = (
        select(columns.id, columns.time_acked)
        .where(columns.time_acked >= bindparam("_since"), columns.time_acked < bindparam("_before"))
        .limit(bindparam("_limit"))
        .offset(bindparam("_offset"))
        .with_for_update(skip_locked=True)
    )
    indexes = {index.name for index in LAYOUTS[queue_options(table).layout].indexes}
    if "poller_idx" in indexes:
        return by_index(chosen.order_by(columns.time_acked), table, "poller_idx")
    # The classic layout has no index by time_acked, but time_next of an acked message is NULL.
    return by_index(chosen.where(columns.time_next.is_(None)), table, "next_idx")
