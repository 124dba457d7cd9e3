"""What streams have in common, whichever protocol brings them.

A stream has no flow control: with a backlog it leases thousands. So a backlog is pulled, and the
stream begins when the queue is near empty. Messages that the tablet overlooks are pulled as well,
and all of them when the stream falls silent: a tablet's stream can die while the table goes on
accepting messages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Engine, Table, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import TextClause, TextualSelect

from ..events import Reconnected, StreamSilent
from ..logs import get_logger
from ..rows.backoff import longest_backoff
from ..rows.lease import Lease
from ..rows.loading import is_too_large
from ..rows.queries import CHUNK, batch_parameters, id_condition, shard_conditions
from ..runtime import Runtime
from .base import BaseTransport, LeasedRow, M, Receiver, Unloadable
from .leaser import LARGEST_PULL
from .pull import PullTransport

__all__ = ["CONFIRM_TIMEOUT", "BaseStreamTransport", "StreamFrom"]

OVERLOOKED_POLL_INTERVAL = 0.5
"""Seconds between two polls for messages that the stream doesn't bring."""

OVERLOOKED_AFTER = 1.0
"""Seconds that a message may be due before it is pulled instead."""

SILENT_AFTER = 2
"""How often in succession messages must be overlooked, and none streamed, to call it silence.

Once is no proof: messages whose transaction took long are overdue as they commit.
"""

SILENT_POLL_INTERVAL = 0.05
"""Seconds between two polls while the stream is silent."""

PULLED_AFTER = 0.1
"""Seconds that a message may be due while the stream is silent. A stream that works again is
faster."""

FAILURES_IN_SUCCESSION = 2
"""How often streams must fail, each soon after the one before, to be suspected of what they bring.

Once is no proof: servers restart.
"""

SUSPECTED_FOR = 30.0
"""Seconds that a suspected queue is pulled from at least."""

CONFIRM_TIMEOUT = 5.0
"""Seconds to wait for the postpone that follows a delivery."""

UNSUBSCRIBED_AFTER = 0.2
"""Seconds until the tablet has noticed that a stream was left. Before, it would send released
messages to nobody, and postpone them.
"""

log = get_logger(__name__)


class StreamFrom(ClauseElement):
    """``stream * from <table>``, which Core has no construct for.

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


class BaseStreamTransport(BaseTransport[M]):
    """Delivers the messages that a stream brings, and pulls the rest.

    :param pull: leases by polling, with the same engine.
    :param loads_by_id: whether the stream can't bring all that an instance needs: then it only
        tells which messages were leased.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        pull: PullTransport[M],
        *,
        receiver: Receiver[M],
        runtime: Runtime,
        loads_by_id: bool,
    ) -> None:
        super().__init__(model, engine, vitess=True)
        self._pull = pull
        self._loads_by_id = loads_by_id
        self._receiver = receiver
        self._runtime = runtime
        columns = self._table.c
        self._querying_epochs = select(columns.id, columns.epoch).where(
            id_condition(self._table), *shard_conditions(self._table)
        )
        self._reading = False
        self._left_at = -math.inf
        self._failure: Exception | None = None
        self._has_streamed = False
        self._silent_polls = 0
        self._next_poll = 0.0
        self._failures = 0
        self._failed_until = -math.inf
        self._suspected_until = -math.inf
        self.pause = 0.0

    def poll(self, limit: int) -> None:
        """Pull a backlog first, then begin to read, and now and then pull overlooked messages."""
        if self._failure is not None:
            failure = self._failure
            self._note_failure(failure)
            self.stop()
            raise failure
        if time.monotonic() < self._suspected_until:
            self._pull.poll(limit)
            self.pause = self._pull.pause
            return
        if not self._reading:
            if self._pull.lease(limit) >= min(limit, LARGEST_PULL):
                self.pause = 0.0
                return
            self._begin()
            self._reading = True
            self._next_poll = time.monotonic() + OVERLOOKED_POLL_INTERVAL
        elif time.monotonic() >= self._next_poll:
            self._pull_overlooked(limit)
        self.pause = max(self._next_poll - time.monotonic(), 0.0)

    def _note_failure(self, failure: Exception) -> None:
        """Pull for a while, if streams fail because of what they bring.

        Vitess sends several messages as one, which it then refuses because of its size. They are
        leased nevertheless. When their leases end, another stream would fail as this one did. Over
        the MySQL protocol it doesn't say why.
        """
        now = time.monotonic()
        self._failures = self._failures + 1 if now < self._failed_until else 1
        # Until the messages of this stream have come back, or those of one that fails then.
        lease = self._options.ack_wait + longest_backoff(self._failures, self._options)
        self._failed_until = now + 2 * lease
        if is_too_large(failure) or self._failures >= FAILURES_IN_SUCCESSION:
            self._suspected_until = now + max(2 * lease, SUSPECTED_FOR)
            log.warning(
                "the stream failed, as it does when messages are too large or servers restart: "
                "pulling for %.0f s",
                self._suspected_until - now, extra={"queue": self._table.name},
            )  # fmt: skip

    @property
    def _is_silent(self) -> bool:
        return self._silent_polls >= SILENT_AFTER

    def _pull_overlooked(self, limit: int) -> None:
        streamed, self._has_streamed = self._has_streamed, False
        due_for = PULLED_AFTER if self._is_silent else OVERLOOKED_AFTER
        overlooked = self._pull.lease(limit, due_for=due_for)
        self._note_silence(overlooked, streamed=streamed)
        interval = SILENT_POLL_INTERVAL if self._is_silent else OVERLOOKED_POLL_INTERVAL
        self._next_poll = time.monotonic() + interval

    def _note_silence(self, overlooked: int, *, streamed: bool) -> None:
        """Notice when the stream brings nothing though messages are due, and when it does again."""
        extra = {"queue": self._table.name}
        if streamed:
            if self._is_silent:
                log.info("the stream brings messages again", extra=extra)
                self._receiver.emit(Reconnected(self._table.name))
            self._silent_polls = 0
        elif overlooked:
            self._silent_polls += 1
            if self._silent_polls == SILENT_AFTER:
                log.warning(
                    "messages are due and the stream brings none: pulling until it does",
                    extra=extra,
                )
                self._receiver.emit(StreamSilent(self._table.name))

    def interrupt(self) -> None:
        self._pull.interrupt()

    def stop(self) -> None:
        if self._reading:
            self._end()
            self._left_at = time.monotonic()
        self._reading = False
        self._failure = None
        self.pause = 0.0
        self._pull.stop()

    def _begin(self) -> None:
        """Start to read, and to call :meth:`_arrive` or :meth:`_fail`."""
        raise NotImplementedError

    def _end(self) -> None:
        """Leave the stream when everything that was read has arrived."""
        raise NotImplementedError

    def _arrive(self, messages: Sequence[M]) -> None:
        """Deliver messages that were read just now."""
        now = time.monotonic()
        self._give_leases(messages, now, now, confirm=self._confirm)
        self._deliver(messages)

    def _arrive_by_id(self, rows: Sequence[LeasedRow]) -> None:
        """Load and deliver messages of which the stream told just now."""
        now = time.monotonic()
        batch = self._runtime.call(self._load, rows, now, now, confirm=self._confirm)
        self._deliver(*batch)

    def _deliver(self, messages: Sequence[M], unloadable: Sequence[Unloadable] = ()) -> None:
        self._has_streamed = True
        self._receiver.deliver(messages, unloadable)

    def _fail(self, error: Exception) -> None:
        """Make the next poll raise an error."""
        self._failure = error
        self._receiver.poll_now()

    def _stream(self, seconds: float | None = None) -> StreamFrom:
        """Return the statement that reads the stream as rows.

        :param seconds: after which the server ends it; None for never.
        """
        return StreamFrom(self._table, seconds)

    def _stream_messages(self, seconds: float | None = None) -> Any:
        """Return the statement that reads the stream as instances; see :meth:`_stream`."""
        # TextualSelect requires no more of its text than that it compiles.
        source = cast("TextClause", self._stream(seconds))
        columns: list[Any] = list(self._table.columns)
        return self._select().from_statement(TextualSelect(source, columns, positional=False))

    def _confirm(self, leases: Sequence[Lease]) -> None:
        """Wait, from wherever a message is settled, until Vitess has postponed it."""
        self._runtime.call_from_any_thread(self._wait_until_postponed, leases)

    def _wait_until_postponed(self, leases: Sequence[Lease]) -> None:
        """Wait until the rows of these leases show that Vitess has postponed them.

        The query is on a connection of its own: the caller's transaction may have an older view of
        the rows, and an UPDATE that matches nothing would lock them against the postpone.
        """
        waiting = {lease.message_id: lease for lease in leases}
        give_up_at = time.monotonic() + CONFIRM_TIMEOUT
        pause = 0.001
        while waiting:
            some = list(waiting.values())[:CHUNK]
            parameters = batch_parameters(self._table, [lease.key for lease in some])
            with self._engine.connect() as connection:
                rows = connection.execute(self._querying_epochs, parameters)
                epochs = {row.id: row.epoch for row in rows}
            for lease in some:
                if epochs.get(lease.message_id, lease.fence) >= lease.fence:
                    del waiting[lease.message_id]
            if not waiting or time.monotonic() > give_up_at:
                return
            self._runtime.sleep(pause)
            pause = min(pause * 2, 0.1)

    def release_leases(self, leases: Sequence[Lease]) -> None:
        self._wait_until_postponed(leases)
        self._runtime.sleep(max(self._left_at + UNSUBSCRIBED_AFTER - time.monotonic(), 0.0))
        super().release_leases(leases)

    def engines(self) -> list[Engine]:
        return self._pull.engines()  # With the same engine.

    def close(self) -> None:
        self._pull.close()
        super().close()
