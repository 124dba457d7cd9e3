"""Vitess pushes: ``stream * from t`` over the MySQL protocol, by PyMySQL.

vtgate doesn't notice that a client left while a stream idles: the dead subscriber goes on taking
its share of the messages, in vtcombo for good. So a stream is requested for one segment at a time,
which the server ends itself. Leaving means reading the present segment to its end, and a segment
that doesn't end shows that the server is gone. Two lanes take turns, half a segment apart, because
a tablet whose last subscriber leaves forgets the messages that it was about to send.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, cast
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from ..errors import InvalidArgument
from ..rows.own_session import OwnSession
from ..runtime import Runtime, Task
from ..vitess.server import is_pymysql
from .base import LeasedRow, M, Receiver
from .engines import copy_engine, set_read_timeout
from .pull import PullTransport
from .stream_base import BaseStreamTransport

if TYPE_CHECKING:
    from ..vitess.stream_cursor import StreamCursor

__all__ = ["StreamTransport", "check_stream"]

SEGMENT = 1.0
"""Seconds after which the server ends a stream. Stopping takes that long at most."""

LANES = 2

SILENCE = 1.5
"""Seconds without the end of a segment, after its time, until the server counts as gone."""

_INTERRUPTED = (1317,)
"""MySQL's number of the error for a query that the server has ended, such as by its time limit."""


def check_stream(engine: Engine) -> None:
    """Check that an engine can stream.

    :raises InvalidArgument: when its driver can't, or its pool has too few connections.
    """
    if not is_pymysql(engine.dialect):
        raise InvalidArgument(
            f"transport='stream': needs the driver pymysql, not {engine.url.drivername}"
        )
    pool = engine.pool
    if isinstance(pool, QueuePool) and pool._max_overflow >= 0:
        most = pool.size() + pool._max_overflow
        if 0 < most <= LANES:
            raise InvalidArgument(
                f"transport='stream': needs {LANES + 1} connections, and the bind's pool has "
                f"{most}; raise its pool_size or max_overflow"
            )


class StreamTransport(BaseStreamTransport[M]):
    """Reads a message table's stream on connections of its own."""

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
        super().__init__(
            model, engine, pull, receiver=receiver, runtime=runtime, loads_by_id=loads_by_id
        )
        self._lanes: list[Task] = []
        self._stopping = threading.Event()
        # Of its own, because other statements may take longer than a segment.
        self._streaming = copy_engine(engine)
        set_read_timeout(self._streaming, SEGMENT + SILENCE)
        _keep_pool_of(self._streaming)

    def _begin(self) -> None:
        self._stopping.clear()
        self._lanes = [
            self._runtime.start(
                partial(self._run_lane, SEGMENT * (number + 1) / LANES), "MysqlStream"
            )
            for number in range(LANES)
        ]

    def _end(self) -> None:
        self._stopping.set()
        for lane in self._lanes:
            lane.join()

    def interrupt(self) -> None:
        super().interrupt()
        self._stopping.set()

    def engines(self) -> list[Engine]:
        return [*super().engines(), self._streaming]

    def _run_lane(self, first_segment: float) -> None:
        seconds = first_segment
        try:
            while not self._stopping.is_set():
                self._read_segment(seconds)
                seconds = SEGMENT
        except Exception as error:  # noqa: BLE001  # Raised again by poll().
            self._fail(error)

    def _read_segment(self, seconds: float) -> None:
        """Read one segment of the stream, to its end."""
        started = time.monotonic()
        try:
            with self._streaming.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
                try:
                    connection.execute(text("SET workload='olap'"))
                    self._read_stream(connection, seconds)
                finally:
                    # The next user of the connection wants the OLTP workload.
                    connection.invalidate()
        except DBAPIError as error:
            lasted = time.monotonic() - started
            if not _may_be_an_end(error) or not seconds <= lasted < seconds + SILENCE:
                raise

    def _read_stream(self, connection: Connection, seconds: float) -> None:
        from ..vitess.stream_cursor import StreamCursor

        cursor = StreamCursor.of(connection)
        try:
            if self._loads_by_id:
                sql = str(self._stream(seconds).compile(dialect=self._streaming.dialect))
                result = connection.exec_driver_sql(sql)
                while result.fetchone() is not None:
                    self._arrive_by_id([_leased_row(cursor)])
            else:
                self._read_messages(connection, seconds, cursor)
        finally:
            cursor.leave()

    def _read_messages(self, connection: Connection, seconds: float, cursor: StreamCursor) -> None:
        """Deliver messages; by its id each whose row can't be read as an instance."""
        while True:
            session = OwnSession(connection)
            try:
                for message in session.scalars(self._stream_messages(seconds)).yield_per(1):
                    session.expunge(message)
                    self._arrive([message])
            except Exception:
                if cursor.row is None:
                    raise
                self._arrive_by_id([_leased_row(cursor)])
            else:
                return


def _may_be_an_end(error: DBAPIError) -> bool:
    """Return whether this may be how a server ends a segment, if it comes when that is over.

    The time limit of a query on a tablet is an error from Vitess 24 on. Before, vtgate drops the
    connection. vtcombo, and sometimes vtgate, end the result, which is no error.
    """
    ended = error.orig is not None and error.orig.args[:1] == _INTERRUPTED
    return ended or error.connection_invalidated


_streaming: WeakSet[Engine] = WeakSet()


def _keep_pool_of(engine: Engine) -> None:
    """Have :func:`_keep_pool` called for errors on an engine.

    One listener for all: it sits on the dialect, which engines that were copied share.
    """
    _streaming.add(engine)
    if not event.contains(engine.dialect, "handle_error", _keep_pool):
        event.listen(engine.dialect, "handle_error", _keep_pool)


def _keep_pool(context: ExceptionContext) -> None:
    """Keep the other connections: losing one is how a segment ends."""
    if context.engine in _streaming:
        context.invalidate_pool_on_disconnect = False


def _leased_row(cursor: StreamCursor) -> LeasedRow:
    """Return what identifies the row that a cursor has read."""
    id_, epoch, time_next = cursor.integers("id", "epoch", "time_next")
    return LeasedRow(cast("int", id_), cast("int", epoch), time_next)
