"""Lease by polling: exactly as many messages as there is room for, on every database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from sqlalchemy import Connection, Engine, bindparam, delete, select, update
from sqlalchemy.orm import Session

from .. import clock, wakeups
from ..backoff import backoff
from ..ddl import OPTIONS_KEY
from ..leases import Lease, attach
from ..options import QueueOptions
from .base import Leasing, M

__all__ = ["PullTransport"]

SHORTEST_PAUSE = 0.002
"""Seconds until the next look after one that found nothing; doubled at each further one."""

LONGEST_PAUSE = 0.1
"""Seconds between two looks at an idle queue."""

PURGE_CHUNK = 500
"""Rows deleted by one statement, as in Vitess."""


class PullTransport(Leasing[M]):
    """Select due rows in Vitess's order, lock them, and postpone them as Vitess does.

    :param purges: whether to delete acked messages, where the server doesn't.
    """

    def __init__(self, model: type[M], engine: Engine, *, purges: bool) -> None:
        super().__init__(model, engine)
        self._options: QueueOptions = self._table.info[OPTIONS_KEY]
        self._purges = purges
        self._next_purge = time.monotonic() + self._options.poller_interval
        self._pause = 0.0
        self._wake = threading.Event()
        self._interrupted = False
        wakeups.listen(self._table, self._wake)
        columns = self._table.c
        due = (columns.time_acked.is_(None), columns.time_next < bindparam("_now"))
        self._looking = select(columns.id).where(*due).limit(1)
        ranks = [columns.priority] if "priority" in columns else []
        self._taking = (
            self._select()
            .where(*due)
            .order_by(*ranks, columns.time_next.desc())
            .limit(bindparam("_limit"))
            .with_for_update(skip_locked=True)
        )
        self._purging = (
            select(columns.id).where(columns.time_acked < bindparam("_before")).limit(PURGE_CHUNK)
        )

    def receive(self, limit: int) -> Iterator[M]:
        if self._purges and time.monotonic() >= self._next_purge:
            self._purge()
        if self._wake.wait(self._pause):
            self._wake.clear()
            self._pause = 0.0
        idle = self._interrupted or (self._pause and not self._something_is_due())
        messages = [] if idle else self.take(limit)
        self._pause = 0.0 if messages else min(max(self._pause * 2, SHORTEST_PAUSE), LONGEST_PAUSE)
        yield from messages

    def interrupt(self) -> None:
        self._interrupted = True
        self._wake.set()

    def stop(self) -> list[M]:
        return []

    def take(self, limit: int, *, due_for: float = 0) -> list[M]:
        """Lease up to ``limit`` messages that have been due for some seconds."""
        asked = time.monotonic()
        before = clock.now() - clock.to_nanoseconds(due_for)
        with self._engine.begin() as connection:
            session = Session(connection, expire_on_commit=False, autoflush=False)
            due = session.scalars(self._taking, {"_now": before, "_limit": limit})
            messages: list[M] = list(due)
            session.expunge_all()
            if messages:
                self._postpone(connection, messages)
        for message in messages:
            attach(message, Lease(message.epoch, asked + self._options.ack_wait))
        return messages

    def _something_is_due(self) -> bool:
        """Look without locking anything, which an idle queue's inserts would have to wait for."""
        with self._engine.connect() as connection:
            return connection.scalar(self._looking, {"_now": clock.now()}) is not None

    def _postpone(self, connection: Connection, messages: list[M]) -> None:
        """Start the leases, as Vitess does after it has sent messages."""
        epoch = self._table.c.epoch
        lease = clock.to_nanoseconds(self._options.ack_wait)
        connection.execute(
            update(self._table)
            .where(self._table.c.id.in_([message.id for message in messages]))
            .values(time_next=clock.now() + lease + backoff(epoch, self._options), epoch=epoch + 1)
        )

    def _purge(self) -> None:
        """Delete what was acked longer ago than ``purge_after``."""
        before = clock.now() - clock.to_nanoseconds(self._options.purge_after)
        ids = [0] * PURGE_CHUNK
        while len(ids) == PURGE_CHUNK and not self._interrupted:
            with self._engine.begin() as connection:
                ids = list(connection.scalars(self._purging, {"_before": before}))
                if ids:
                    connection.execute(delete(self._table).where(self._table.c.id.in_(ids)))
        self._next_purge = time.monotonic() + self._options.poller_interval
