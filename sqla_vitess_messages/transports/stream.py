"""Vitess pushes: ``stream * from t`` over the MySQL protocol, by PyMySQL.

vtgate doesn't see that a client left while a stream idles: the dead subscriber goes on taking its
share, in vtcombo for good. So a stream is asked for one segment at a time, which the server ends
itself; leaving means reading the present one to its end, and a segment that doesn't end says that
the server is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

from sqlalchemy import Engine, Table, bindparam, event, select, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import TextClause, TextualSelect

from ..ddl import OPTIONS_KEY
from ..leases import Lease, attach, fence_of
from ..options import QueueOptions
from .base import Leasing, M

__all__ = ["StreamTransport"]

SEGMENT = 1.0
"""Seconds after which the server ends a stream. ``close()`` waits that long at most."""

SILENCE = 1.5
"""Seconds more without an end until the server counts as gone."""

CONFIRM_WITHIN = 5.0
"""Seconds to wait for the postpone that follows a delivery."""


class _StreamFrom(ClauseElement):
    """``stream * from <table>``, which Core has no word for."""

    __visit_name__ = "message_queue_stream"
    inherit_cache = False

    def __init__(self, table: Table) -> None:
        self.table = table


@compiles(_StreamFrom)
def _compile_stream(element: _StreamFrom, compiler: SQLCompiler, **_kw: Any) -> str:
    table = compiler.preparer.format_table(element.table)
    return f"stream /*vt+ QUERY_TIMEOUT_MS={SEGMENT * 1000:.0f} */ * from {table}"


class StreamTransport(Leasing[M]):
    """Reads a message table's stream on a connection of its own."""

    def __init__(self, model: type[M], engine: Engine) -> None:
        super().__init__(model, engine)
        self._options: QueueOptions = self._table.info[OPTIONS_KEY]
        names = self._options.message_cols
        assert names is not None  # Every layout that Vitess takes today names them.
        # TextualSelect asks no more of its text than that it compiles.
        source = cast("TextClause", _StreamFrom(self._table))
        columns = [self._table.c[name] for name in names]
        self._streaming = self._select().from_statement(
            TextualSelect(source, columns, positional=True)
        )
        self._looking = select(self._table.c.id, self._table.c.epoch).where(
            self._table.c.id.in_(bindparam("_ids", expanding=True))
        )
        self._interrupted = threading.Event()
        event.listen(engine, "connect", _bound_reads)
        event.listen(engine, "handle_error", _abandon_result)

    def receive(self, limit: int) -> Iterator[M]:
        """Yield what one segment brings; whether there is room, the server doesn't ask."""
        if self._interrupted.is_set():
            return
        started = time.monotonic()
        try:
            yield from self._segment()
        except DBAPIError as error:
            # A cluster ends a segment by dropping the connection; vtcombo ends the result.
            lasted = time.monotonic() - started
            if not error.connection_invalidated or not SEGMENT <= lasted < SEGMENT + SILENCE:
                raise

    def _segment(self) -> Iterator[M]:
        options = {"stream_results": True, "yield_per": 1}
        with self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text("SET workload='olap'"))
            try:
                session = Session(connection, autoflush=False)
                for message in session.scalars(self._streaming, execution_options=options):
                    session.expunge(message)
                    deadline = time.monotonic() + self._options.ack_wait
                    attach(message, Lease(message.epoch, deadline, self.confirm))
                    yield message
            finally:
                # The next user of the connection wants the OLTP workload.
                connection.invalidate()

    def interrupt(self) -> None:
        self._interrupted.set()

    def confirm(self, messages: Sequence[M]) -> None:
        """Wait until the rows of these messages show that Vitess has postponed them.

        The look is on a connection of its own: the caller's transaction may have an older view of
        the rows, and an UPDATE that matches nothing would lock them against the postpone.
        """
        waiting = {message.id: fence_of(message) for message in messages}
        give_up = time.monotonic() + CONFIRM_WITHIN
        pause = 0.001
        while waiting:
            ids = list(waiting)[:500]
            with self._engine.connect() as connection:
                seen = {
                    row.id: row.epoch for row in connection.execute(self._looking, {"_ids": ids})
                }
            for id_ in ids:
                if seen.get(id_, waiting[id_]) >= waiting[id_]:
                    del waiting[id_]
            if not waiting or time.monotonic() > give_up:
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def give_back(self, messages: Sequence[M]) -> None:
        self.confirm(messages)
        super().give_back(messages)


def _bound_reads(dbapi_connection: Any, _record: object) -> None:
    """Let a read fail when the server is silent for longer than a segment lasts."""
    dbapi_connection._read_timeout = SEGMENT + SILENCE


def _abandon_result(context: ExceptionContext) -> None:
    """Keep PyMySQL from reading the rest of a result whose connection is gone.

    It would when the cursor is deleted, and print an AttributeError.
    """
    # Losing one connection is how a segment ends: it tells nothing of the others.
    context.invalidate_pool_on_disconnect = False
    cursor: Any = getattr(context.execution_context, "cursor", None)
    result = getattr(cursor, "_result", None)
    if context.is_disconnect and result is not None:
        result.unbuffered_active = False
        cursor._result = None
