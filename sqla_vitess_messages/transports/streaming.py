"""What streams have in common, whichever protocol brings them.

A stream has no flow control: with a backlog it leases thousands. So a backlog is pulled, and the
stream begins when the queue is near empty. What the tablet overlooks is pulled as well, and all of
it when the stream falls silent: a tablet's can die while the table goes on taking messages.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from sqlalchemy import Engine, Table, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import TextClause, TextualSelect

from ..events import Event, Reconnected, StreamSilent
from ..leases import CHUNK, are_in_batch, batch_parameters, fence_of
from ..wakeups import Wakeable
from .base import Deliver, Leasing, M
from .pull import PullTransport
from .puller import LARGEST_PULL

__all__ = ["StreamFrom", "Streaming"]

LOOK_AFTER = 0.5
"""Seconds between two looks for what the stream doesn't bring."""

OVERLOOKED_AFTER = 1.0
"""Seconds that a message may be due before it is pulled instead."""

SILENT_AFTER = 2
"""How often in succession messages must be overlooked, and none streamed, to call it silence.

Once is no proof: messages whose transaction took long are overdue as they commit.
"""

SILENT_PAUSE = 0.05
"""Seconds between two looks while the stream is silent."""

PULLED_AFTER = 0.1
"""Seconds that a message may be due while the stream is silent: one that works again is faster."""

CONFIRM_WITHIN = 5.0
"""Seconds to wait for the postpone that follows a delivery."""

UNSUBSCRIBED_AFTER = 0.2
"""Seconds until the tablet has noticed that a stream was left. Until then it would send to nobody
what is given back, and postpone it.
"""

log = logging.getLogger(__name__)


class StreamFrom(ClauseElement):
    """``stream * from <table>``, which Core has no word for.

    :param seconds: after which the server ends the stream; None for never.
    """

    __visit_name__ = "message_queue_stream"
    inherit_cache = False

    def __init__(self, table: Table, seconds: float | None = None) -> None:
        self.table = table
        self.milliseconds = None if seconds is None else round(seconds * 1000)


@compiles(StreamFrom)
def _compile_stream(element: StreamFrom, compiler: SQLCompiler, **_kw: Any) -> str:
    table = compiler.preparer.format_table(element.table)
    if element.milliseconds is None:
        return f"stream * from {table}"
    return f"stream /*vt+ QUERY_TIMEOUT_MS={element.milliseconds} */ * from {table}"


class Streaming(Leasing[M]):
    """Delivers what a stream brings, and pulls the rest.

    :param pull: leases by polling, with the same engine.
    :param deliver: called with what was read, from the thread or task that reads.
    :param report: called when the stream falls silent, and when it speaks again.
    :param wake: set when reading has failed.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        pull: PullTransport[M],
        *,
        deliver: Deliver[M],
        report: Callable[[Event], None],
        wake: Wakeable,
    ) -> None:
        super().__init__(model, engine)
        self._pull = pull
        self._deliver = deliver
        self._report = report
        self._wake = wake
        columns = self._table.c
        self._looking = select(columns.id, columns.epoch).where(*are_in_batch(self._table))
        self._reading = False
        self._left = -math.inf
        self._failure: Exception | None = None
        self._has_streamed = False
        self._missed = 0
        self._next_look = 0.0
        self.pause = 0.0

    def look(self, limit: int) -> None:
        """Pull a backlog first, then begin to read, and now and then pull what is overlooked."""
        if self._failure is not None:
            failure = self._failure
            self.stop()
            raise failure
        if not self._reading:
            if self._pull.take(limit) >= min(limit, LARGEST_PULL):
                self.pause = 0.0
                return
            self._begin()
            self._reading = True
            self._next_look = time.monotonic() + LOOK_AFTER
        elif time.monotonic() >= self._next_look:
            self._look_for_overlooked(limit)
        self.pause = max(self._next_look - time.monotonic(), 0.0)

    def _look_for_overlooked(self, room: int) -> None:
        silent = self._missed >= SILENT_AFTER
        streamed, self._has_streamed = self._has_streamed, False
        overlooked = self._pull.take(room, due_for=PULLED_AFTER if silent else OVERLOOKED_AFTER)
        self._watch(overlooked, streamed=streamed)
        silent = self._missed >= SILENT_AFTER
        self._next_look = time.monotonic() + (SILENT_PAUSE if silent else LOOK_AFTER)

    def _watch(self, overlooked: int, *, streamed: bool) -> None:
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

    def interrupt(self) -> None:
        self._pull.interrupt()

    def stop(self) -> None:
        if self._reading:
            self._end()
            self._left = time.monotonic()
        self._reading = False
        self._failure = None
        self.pause = 0.0

    def _begin(self) -> None:
        """Start to read, and to call :meth:`_arrive` or :meth:`_fail`."""
        raise NotImplementedError

    def _end(self) -> None:
        """Leave the stream, when all that was read has arrived."""
        raise NotImplementedError

    def _arrive(self, messages: list[M]) -> None:
        """Deliver what was read just now."""
        now = time.monotonic()
        self._lease(messages, now, now, confirm=self.confirm)
        self._has_streamed = True
        self._deliver(messages)

    def _fail(self, error: Exception) -> None:
        """Let the next look raise an error."""
        self._failure = error
        self._wake.set()

    def _streaming(self, seconds: float | None = None) -> Any:
        """Return what reads the stream.

        :param seconds: after which the server ends it; None for never.
        """
        names = self._options.message_cols
        assert names is not None  # Every layout that Vitess takes today names them.
        # TextualSelect asks no more of its text than that it compiles.
        source = cast("TextClause", StreamFrom(self._table, seconds))
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
            self._sleep(pause)
            pause = min(pause * 2, 0.1)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def give_back(self, messages: Sequence[M]) -> None:
        self.confirm(messages)
        self._sleep(max(self._left + UNSUBSCRIBED_AFTER - time.monotonic(), 0.0))
        super().give_back(messages)

    def close(self) -> None:
        self._pull.close()
        super().close()
