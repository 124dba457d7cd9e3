"""Vitess pushes: vtgate's ``StreamExecute`` over gRPC, in a thread or in an asyncio task.

A call that is cancelled is left cleanly: vtgate tells the tablet, which sends no more. So there are
no segments here. gRPC's keepalive notices when the server is gone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from sqlalchemy import Connection, Engine

from ..rows.own_session import OwnSession
from ..runtime import Runtime, Task
from .base import LeasedRow, M, Receiver, Unloadable
from .pull import PullTransport
from .stream_base import BaseStreamTransport

if TYPE_CHECKING:
    from ..vitess.grpc import dbapi

__all__ = ["GrpcTransport"]

LEAVE_TIMEOUT = 1.0
"""Seconds to wait for the end of a call that was cancelled."""

ROWS_AT_ONCE = 10_000
"""More rows than come together: the driver doesn't wait for more."""

GAP = 0.1
"""Seconds without a message, in which a call is best cancelled: messages that are on their way are
lost until their lease ends."""

GAP_TIMEOUT = 0.6
"""Seconds to wait for a gap."""


class _Call:
    """One call of vtgate, from its beginning to its end."""

    def __init__(self) -> None:
        self.connection: dbapi.Connection | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.connection is not None:
            self.connection.cancel_streams()


class GrpcTransport(BaseStreamTransport[M]):
    """Reads a message table's stream over gRPC.

    :param engine: for everything but the stream.
    :param grpc: an engine for the stream alone.
    """

    _reader: Task

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        pull: PullTransport[M],
        *,
        grpc: Engine,
        receiver: Receiver[M],
        runtime: Runtime,
        loads_by_id: bool,
    ) -> None:
        super().__init__(
            model, engine, pull, receiver=receiver, runtime=runtime, loads_by_id=loads_by_id
        )
        self._grpc = grpc
        self._call = _Call()
        self._last_arrival = 0.0

    def _begin(self) -> None:
        self._call = _Call()
        self._reader = self._runtime.start(partial(self._read_call, self._call), "GrpcStream")

    def _end(self) -> None:
        self._wait_for_gap()
        end = time.monotonic() + LEAVE_TIMEOUT
        while self._reader.is_alive and time.monotonic() < end:
            self._call.cancel()  # Again each time, as the call may not have begun yet.
            self._reader.join(0.05)

    def _read_call(self, call: _Call) -> None:
        """Read until the call is cancelled, or fails."""
        try:
            with self._grpc.connect() as connection:
                call.connection = cast("dbapi.Connection", connection.connection.dbapi_connection)
                if not call.is_cancelled:
                    self._read_responses(connection, call.connection)
            if not call.is_cancelled:
                raise OSError("the server has ended the stream")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # Raised again by poll().
            if not call.is_cancelled:
                self._fail(error)

    def _read_responses(self, connection: Connection, driver: dbapi.Connection) -> None:
        """Deliver messages until the stream ends.

        Those of a part that can't be read as instances are loaded by their ids.
        """
        sql = str(self._stream().compile(dialect=self._grpc.dialect))
        driver.kept_stream = stream = driver.open_stream(sql)
        try:
            while not stream.has_ended:
                if self._loads_by_id:
                    stream.read()
                else:
                    self._read_messages(connection, driver, stream)
                if stream.rows:
                    self._arrive_by_id(_leased_rows(stream))
        finally:
            driver.kept_stream = None
            stream.close()

    def _read_messages(
        self, connection: Connection, driver: dbapi.Connection, stream: dbapi.ResultStream
    ) -> None:
        """Deliver together the messages that came together: whenever the driver begins to wait.

        Returns when the stream has ended, or its last part can't be read as instances.
        """
        session = OwnSession(connection)
        messages: list[M] = []

        def deliver() -> None:
            if messages:
                self._arrive(messages.copy())
                messages.clear()

        driver.before_waiting = deliver
        # Without stream_results, which would keep one row back until there are more.
        try:
            for message in session.scalars(self._stream_messages()).yield_per(ROWS_AT_ONCE):
                session.expunge(message)
                messages.append(message)
        except Exception:
            if stream.has_ended or not stream.rows:
                raise

    def _deliver(self, messages: Sequence[M], unloadable: Sequence[Unloadable] = ()) -> None:
        super()._deliver(messages, unloadable)
        self._last_arrival = time.monotonic()

    def _wait_for_gap(self) -> None:
        end = time.monotonic() + GAP_TIMEOUT
        while self._last_arrival + GAP > time.monotonic() < end:
            self._runtime.sleep(GAP / 10)

    def engines(self) -> list[Engine]:
        return [*super().engines(), self._grpc]


def _leased_rows(stream: dbapi.ResultStream) -> list[LeasedRow]:
    """Return what identifies the rows of a stream's last part."""
    found = stream.integers("id", "epoch", "time_next")
    return [LeasedRow(cast("int", id_), cast("int", epoch), due) for id_, epoch, due in found]
