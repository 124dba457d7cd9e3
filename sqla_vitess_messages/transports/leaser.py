"""Lease due messages of one table on one server, with Vitess's backoff."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

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

T = TypeVar("T")

Query = Callable[[Select[Any], dict[str, Any]], Iterable[Any]]
"""Executes a statement with its parameters, and returns its rows."""

Lock = Callable[[Connection, Query, T], list[Any]]
"""Locks rows by a statement, or by several that belong together, and returns what they select."""


class Lockings(NamedTuple, Generic[T]):
    """What to lock rows by.

    :param messages: selects them with their payload, as instances.
    :param rows: selects only what identifies them.
    """

    messages: T
    rows: T


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
        self._with_payload = self._select().add_columns(columns.id, now)
        self._without_payload = select(columns.id, columns.epoch, columns.time_next, now)
        self._locking = self._lockings(self._due.locking)
        self._unanswered: dict[str, Any] | None = None
        """The parameters of :func:`.states.lease`, while its COMMIT was not answered."""
        self.until_due = 0.0
        """Seconds until another message is due, as far as the last :meth:`lease` has shown."""

    def _lockings(self, locking: Callable[[Select[Any]], T]) -> Lockings[T]:
        """Return what :meth:`_lease` is to lock rows by.

        :param locking: makes it of a SELECT.
        """
        return Lockings(locking(self._with_payload), locking(self._without_payload))

    def lease(self, limit: int, *, due_for: float = 0) -> Batch[M]:
        """Lease messages, 500 at most.

        :param limit: how many at most.
        :param due_for: seconds that they must have been due.
        """
        some = min(limit, LARGEST_PULL)
        lock = partial(self._due.lock, limit=some, due_for=clock.to_nanoseconds(due_for))
        return self._lease(self._locking, lock)

    def _lease(self, lockings: Lockings[T], lock: Lock[T]) -> Batch[M]:
        """Lease messages together with their payload, or load it later if it can't be loaded.

        :param lock: is called with one of ``lockings``.
        """
        began = time.monotonic()
        rows = None if self._portions.are_limited else self._lease_at_once(lockings, lock)
        if rows is None:
            rows = retry_transaction(
                partial(self._lease_in_transaction, Connection.execute, lockings.rows, lock)
            )
            leased = [LeasedRow(*row[:-1]) for row in rows]
            batch = self._load(leased, began, time.monotonic(), shard=self._shard)
        else:
            messages: list[M] = [row[0] for row in rows]
            self._give_leases(messages, began, time.monotonic(), shard=self._shard)
            batch = Batch(messages, [])
        self._unanswered = None
        return batch

    def _lease_at_once(self, lockings: Lockings[T], lock: Lock[T]) -> list[Any] | None:
        """Lease messages together with their payload; return None if that can't be loaded."""
        try:
            return retry_transaction(
                partial(self._lease_in_transaction, self._load_now, lockings.messages, lock)
            )
        except _CannotLoad:
            return None

    def _load_now(
        self, connection: Connection, statement: Select[Any], values: dict[str, Any]
    ) -> list[Any]:
        """Return rows with instances.

        :raises _CannotLoad: when it is the rows that fail, and not the database.
        """
        try:
            return self._read(connection, statement, values)
        except Exception as error:
            if not may_be_a_row(error):
                raise
            raise _CannotLoad from error

    def _lease_in_transaction(
        self, query: Callable[..., Iterable[Any]], locking: T, lock: Lock[T]
    ) -> list[Any]:
        with self._engine.begin() as connection:
            rows = lock(connection, partial(query, connection), locking)
            if not rows or self._is_interrupted():
                return []
            self._postpone(connection, [row.id for row in rows], rows[-1][-1])
        return rows

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
