"""Lease due messages of one table on one server, with Vitess's backoff."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Select, select

from .. import clock
from ..logs import get_logger
from ..rows import states
from ..rows.loading import may_be_a_row
from ..rows.transient import is_transient, retry_transaction
from .base import BaseTransport, Batch, LeasedRow, M
from .due import DueRows
from .engines import READS_ONLY

__all__ = ["LARGEST_PULL", "ShardLeaser"]

LARGEST_PULL = 500
"""Messages leased by one transaction."""

log = get_logger(__name__)


class _CannotLoad(Exception):
    """Rows can't be loaded, for the reason that is the cause."""


class ShardLeaser(BaseTransport[M]):
    """Selects due rows, locks them, and postpones them as Vitess does.

    :param shard: the shard that the engine's connections talk to, if not the whole keyspace.
    :param vitess: whether the server is a vtgate.
    :param is_interrupted: returns whether to lease nothing more, though a query is under way.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        shard: str | None = None,
        *,
        vitess: bool = False,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(model, engine, vitess=vitess)
        self._shard = shard
        self._is_interrupted = is_interrupted
        self._due = DueRows(self._table, vitess=vitess)
        columns, now = self._table.c, clock.database_now()
        self._leasing = self._due.locking(self._select().add_columns(now))
        self._leasing_rows = self._due.locking(
            select(columns.id, columns.epoch, columns.time_next, now)
        )
        self._unanswered: dict[str, Any] | None = None
        """The parameters of :func:`.states.lease`, while its COMMIT was not answered."""
        self.until_due = 0.0
        """Seconds until another message is due, as far as the last :meth:`lease` has shown."""

    def lease(self, limit: int, *, due_for: float = 0) -> Batch[M]:
        """Lease messages, 500 at most.

        :param limit: how many at most.
        :param due_for: seconds that they must have been due.
        """
        began = time.monotonic()
        some = min(limit, LARGEST_PULL), clock.to_nanoseconds(due_for)
        messages = None if self._portions.are_limited else self._lease_at_once(*some)
        if messages is None:
            rows = retry_transaction(partial(self._lease_rows_in_transaction, *some))
            batch = self._load(rows, began, time.monotonic(), shard=self._shard)
        else:
            self._give_leases(messages, began, time.monotonic(), shard=self._shard)
            batch = Batch(messages, [])
        self._unanswered = None
        return batch

    def _lease_at_once(self, limit: int, due_for: int) -> list[M] | None:
        """Lease messages together with their payload; return None if that can't be loaded."""
        try:
            return retry_transaction(partial(self._lease_in_transaction, limit, due_for))
        except _CannotLoad:
            return None

    def revoke_unanswered(self) -> None:
        """Undo the last :meth:`lease`, if it failed when it may have committed.

        Nobody has got those messages, so that they shouldn't wait for the end of their lease, and
        shouldn't count as handed out.
        """
        if self._unanswered is not None:
            try:
                retry_transaction(partial(self._revoke_in_transaction, self._unanswered))
            except Exception as error:
                if not is_transient(error):
                    raise
                log.info("leases were not revoked: %s", error, extra={"queue": self._table.name})
            self._unanswered = None

    def _revoke_in_transaction(self, parameters: dict[str, Any]) -> None:
        with self._engine.begin() as connection:
            connection.execute(states.revoke(self._table), parameters)

    def _lease_in_transaction(self, limit: int, due_for: int) -> list[M]:
        with self._engine.begin() as connection:

            def load(statement: Select[Any], values: dict[str, Any]) -> list[Any]:
                try:
                    return self._read(connection, statement, values)
                except Exception as error:
                    if not may_be_a_row(error):
                        raise
                    raise _CannotLoad from error

            found = self._due.lock(connection, load, self._leasing, limit, due_for)
            if not found or self._is_interrupted():
                return []
            messages: list[M] = [message for message, _now in found]
            self._postpone(connection, [message.id for message in messages], found[-1][-1])
        return messages

    def _lease_rows_in_transaction(self, limit: int, due_for: int) -> list[LeasedRow]:
        """Lease messages without reading their payload, which is loaded later."""
        with self._engine.begin() as connection:
            found: list[Any] = self._due.lock(
                connection, connection.execute, self._leasing_rows, limit, due_for
            )
            if not found or self._is_interrupted():
                return []
            rows = [LeasedRow(*row[:-1]) for row in found]
            self._postpone(connection, [row.id for row in rows], found[-1][-1])
        return rows

    def _postpone(self, connection: Connection, ids: list[int], now: int) -> None:
        """Lease rows.

        :param now: the database's time, by which the end of the leases is known without asking.
        """
        parameters = states.lease_parameters(ids, now)
        connection.execute(states.lease(self._table), parameters)
        self._unanswered = parameters

    def seconds_until_due(self) -> float:
        """Return after how many seconds a message is due: 0 if one is, infinite if there is none.

        No insert has to wait for this.
        """
        with self._engine.connect().execution_options(**{READS_ONLY: True}) as connection:
            return self._due.seconds_until_due(connection)
