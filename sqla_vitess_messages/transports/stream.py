"""Vitess pushes: ``stream * from t`` over the MySQL protocol, by PyMySQL.

vtgate doesn't see that a client left while a stream idles: the dead subscriber goes on taking its
share, in vtcombo for good. So a stream is asked for one segment at a time, which the server ends
itself. Leaving means reading the present segment to its end, and a segment that doesn't end says
that the server is gone. Two lanes take turns, half a segment apart, because a tablet whose last
subscriber leaves forgets what it was about to send.

A stream has no flow control: with a backlog it leases thousands. So a backlog is pulled, and the
stream begins when the queue is near empty. What the tablet overlooks is pulled as well, and all of
it when the stream falls silent: a tablet's can die while the table goes on taking messages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, cast

from sqlalchemy import Connection, Engine, Table, event, select, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import TextClause, TextualSelect

from ..backoff import longest_backoff
from ..ddl import OPTIONS_KEY
from ..events import Event, Reconnected, StreamSilent
from ..leases import CHUNK, Lease, are_in_batch, attach, batch_parameters, fence_of
from ..options import QueueOptions
from .base import Leasing, M, bound_reads
from .puller import LARGEST_PULL, Puller

__all__ = ["StreamTransport"]

SEGMENT = 1.0
"""Seconds after which the server ends a stream. Stopping takes that long at most."""

LANES = 2

SILENCE = 1.5
"""Seconds more without an end until the server counts as gone."""

CONFIRM_WITHIN = 5.0
"""Seconds to wait for the postpone that follows a delivery."""

OVERLOOKED_AFTER = 1.0
"""Seconds that a message may be due before it is pulled instead."""

SILENT_AFTER = 2
"""How often in succession messages must be overlooked, and none streamed, to call it silence.

Once is no proof: messages whose transaction took long are overdue as they commit.
"""

SILENT_PAUSE = 0.05
"""Seconds between two pulls while the stream is silent."""

log = logging.getLogger(__name__)


class _StreamFrom(ClauseElement):
    """``stream * from <table>``, which Core has no word for."""

    __visit_name__ = "message_queue_stream"
    inherit_cache = False

    def __init__(self, table: Table, seconds: float) -> None:
        self.table = table
        self.milliseconds = round(seconds * 1000)


@compiles(_StreamFrom)
def _compile_stream(element: _StreamFrom, compiler: SQLCompiler, **_kw: Any) -> str:
    table = compiler.preparer.format_table(element.table)
    return f"stream /*vt+ QUERY_TIMEOUT_MS={element.milliseconds} */ * from {table}"


class StreamTransport(Leasing[M]):
    """Reads a message table's stream on connections of its own.

    :param report: called when the stream falls silent, and when it speaks again.
    """

    def __init__(self, model: type[M], engine: Engine, report: Callable[[Event], None]) -> None:
        super().__init__(model, engine)
        self._report = report
        self._options: QueueOptions = self._table.info[OPTIONS_KEY]
        columns = self._table.c
        self._looking = select(columns.id, columns.epoch).where(*are_in_batch(self._table))
        self._puller = Puller(model, engine)
        self._arrived: SimpleQueue[M | Exception] = SimpleQueue()
        self._lanes: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._missed = 0
        bound_reads(engine, SEGMENT + SILENCE)
        event.listen(engine, "handle_error", self._abandon_result)

    def receive(self, limit: int) -> Iterator[M]:
        """Yield a backlog first, then what the lanes read in half a segment."""
        room = limit
        if not self._lanes:
            backlog = self._puller.take(room)
            yield from backlog
            if len(backlog) == min(room, LARGEST_PULL):
                return
            room -= len(backlog)
            self._start()
        streamed = 0
        silent = self._missed >= SILENT_AFTER
        for message in self._read_lanes(SILENT_PAUSE if silent else SEGMENT / 2):
            streamed += 1
            yield message
        overlooked: list[M] = []
        if streamed < room:
            due_for = 0 if silent else OVERLOOKED_AFTER
            overlooked = self._puller.take(room - streamed, due_for=due_for)
            yield from overlooked
        self._watch(streamed, len(overlooked))

    def _watch(self, streamed: int, overlooked: int) -> None:
        """Notice when the stream brings nothing though messages are due, and when it does again."""
        extra = {"queue": self._table.name}
        if streamed:
            if self._missed >= SILENT_AFTER:
                log.info("the stream brings messages again", extra=extra)
                self._report(Reconnected(self._table.name))
            self._missed = 0
        elif overlooked:
            self._missed += 1
            if self._missed == SILENT_AFTER:
                log.warning(
                    "messages are due and the stream brings none: pulling until it does",
                    extra=extra,
                )
                self._report(StreamSilent(self._table.name))

    def _read_lanes(self, seconds: float) -> Iterator[M]:
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            try:
                arrived = self._arrived.get(timeout=remaining)
            except Empty:
                return
            if isinstance(arrived, Exception):
                yield from self.stop()
                raise arrived
            yield arrived

    def interrupt(self) -> None:
        self._stopping.set()

    def stop(self) -> list[M]:
        self._stopping.set()
        for lane in self._lanes:
            lane.join()
        self._lanes = []
        arrived: list[M] = []
        while not self._arrived.empty():
            item = self._arrived.get()
            if not isinstance(item, Exception):
                arrived.append(item)
        return arrived

    def _start(self) -> None:
        self._stopping.clear()
        self._lanes = [
            threading.Thread(
                target=self._run_lane, args=(SEGMENT * (number + 1) / LANES,), daemon=True
            )
            for number in range(LANES)
        ]
        for lane in self._lanes:
            lane.start()

    def _run_lane(self, first_segment: float) -> None:
        seconds = first_segment
        try:
            while not self._stopping.is_set():
                self._read(seconds)
                seconds = SEGMENT
        except Exception as error:  # noqa: BLE001  # Raised again by receive().
            self._arrived.put(error)

    def _read(self, seconds: float) -> None:
        """Read one segment of the stream, to its end."""
        started = time.monotonic()
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
                try:
                    connection.execute(text("SET workload='olap'"))
                    self._read_rows(connection, seconds)
                finally:
                    # The next user of the connection wants the OLTP workload.
                    connection.invalidate()
        except DBAPIError as error:
            # A cluster ends a segment by dropping the connection; vtcombo ends the result.
            lasted = time.monotonic() - started
            if not error.connection_invalidated or not seconds <= lasted < seconds + SILENCE:
                raise

    def _read_rows(self, connection: Connection, seconds: float) -> None:
        options = {"stream_results": True, "yield_per": 1}
        session = Session(connection, autoflush=False)
        messages = session.scalars(self._streaming(seconds), execution_options=options)
        for message in messages:
            session.expunge(message)
            stale = time.monotonic() + self._options.ack_wait
            ends = stale + longest_backoff(message.epoch, self._options)
            attach(message, Lease(message.epoch, stale, ends, confirm=self.confirm))
            self._arrived.put(message)

    def _streaming(self, seconds: float) -> Any:
        names = self._options.message_cols
        assert names is not None  # Every layout that Vitess takes today names them.
        # TextualSelect asks no more of its text than that it compiles.
        source = cast("TextClause", _StreamFrom(self._table, seconds))
        columns: list[Any] = [self._table.c[name] for name in names]
        return self._select().from_statement(TextualSelect(source, columns, positional=False))

    def confirm(self, messages: Sequence[M]) -> None:
        """Wait until the rows of these messages show that Vitess has postponed them.

        The look is on a connection of its own: the caller's transaction may have an older view of
        the rows, and an UPDATE that matches nothing would lock them against the postpone.
        """
        waiting = {message.id: message for message in messages}
        give_up = time.monotonic() + CONFIRM_WITHIN
        pause = 0.001
        while waiting:
            some = list(waiting.values())[:CHUNK]
            with self._engine.connect() as connection:
                rows = connection.execute(self._looking, batch_parameters(self._table, some))
                seen = {row.id: row.epoch for row in rows}
            for message in some:
                fence = fence_of(message)
                if seen.get(message.id, fence) >= fence:
                    del waiting[message.id]
            if not waiting or time.monotonic() > give_up:
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def give_back(self, messages: Sequence[M]) -> None:
        self.confirm(messages)
        super().give_back(messages)

    def close(self) -> None:
        event.remove(self._engine, "handle_error", self._abandon_result)
        super().close()

    def _abandon_result(self, context: ExceptionContext) -> None:
        """Keep PyMySQL from reading the rest of a result whose connection is gone.

        It would when the cursor is deleted, and print an AttributeError.
        """
        if context.engine is not self._engine:
            return  # The listener sits on the dialect, which a copied engine shares.
        # Losing one connection is how a segment ends: it tells nothing of the others.
        context.invalidate_pool_on_disconnect = False
        cursor: Any = getattr(context.execution_context, "cursor", None)
        result = getattr(cursor, "_result", None)
        if context.is_disconnect and result is not None:
            result.unbuffered_active = False
            cursor._result = None
