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
from typing import Any
from weakref import WeakSet

from sqlalchemy import Engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..runtime import Runtime, Task
from .base import M, Receiver
from .engines import set_read_timeout
from .pull import PullTransport
from .stream_base import BaseStreamTransport

__all__ = ["StreamTransport"]

SEGMENT = 1.0
"""Seconds after which the server ends a stream. Stopping takes that long at most."""

LANES = 2

SILENCE = 1.5
"""Seconds without the end of a segment, after its time, until the server counts as gone."""


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
    ) -> None:
        super().__init__(model, engine, pull, receiver=receiver, runtime=runtime)
        self._lanes: list[Task] = []
        self._stopping = threading.Event()
        set_read_timeout(engine, SEGMENT + SILENCE)
        _handle_errors_of(engine)

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
            with self._engine.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
                try:
                    connection.execute(text("SET workload='olap'"))
                    session = Session(connection, autoflush=False)
                    # Asked for more rows at a time, PyMySQL would wait until it has all of them.
                    options = {"stream_results": True, "yield_per": 1}
                    for message in session.scalars(
                        self._streaming(seconds), execution_options=options
                    ):
                        session.expunge(message)
                        self._arrive([message])
                finally:
                    # The next user of the connection wants the OLTP workload.
                    connection.invalidate()
        except DBAPIError as error:
            # A cluster ends a segment by dropping the connection; vtcombo ends the result.
            lasted = time.monotonic() - started
            if not error.connection_invalidated or not seconds <= lasted < seconds + SILENCE:
                raise


_streaming: WeakSet[Engine] = WeakSet()


def _handle_errors_of(engine: Engine) -> None:
    """Have :func:`_abandon_result` called for errors on an engine.

    One listener for all: it sits on the dialect, which engines that were copied share.
    """
    _streaming.add(engine)
    if not event.contains(engine.dialect, "handle_error", _abandon_result):
        event.listen(engine.dialect, "handle_error", _abandon_result)


def _abandon_result(context: ExceptionContext) -> None:
    """Keep PyMySQL from reading the rest of a result whose connection is gone.

    It would do so when the cursor is deleted, and print an AttributeError.
    """
    if context.engine not in _streaming:
        return
    # Losing one connection is how a segment ends: the others are as good as before.
    context.invalidate_pool_on_disconnect = False
    cursor: Any = getattr(context.execution_context, "cursor", None)
    result = getattr(cursor, "_result", None)
    if context.is_disconnect and result is not None:
        result.unbuffered_active = False
        cursor._result = None
