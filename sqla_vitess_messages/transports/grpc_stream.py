"""Vitess pushes: vtgate's ``StreamExecute`` over gRPC, in a thread or in a task.

A call that is cancelled is left cleanly: vtgate tells the tablet, which sends no more. So there are
no segments here. That the server is alive is gRPC's keepalive to find out.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from ..events import Event
from ..wakeups import Wakeable
from .base import Deliver, M
from .pull import PullTransport
from .streaming import CONFIRM_WITHIN, Streaming

if TYPE_CHECKING:
    from ..vtgate_grpc import dbapi

__all__ = ["AsyncGrpcTransport", "GrpcTransport"]

LEAVE_WITHIN = 1.0
"""Seconds to wait for the end of a call that was cancelled."""

ROWS_AT_ONCE = 10_000
"""More than come together: the driver doesn't wait for more."""

GAP = 0.1
"""Seconds without a message, in which a call is best cancelled: what is on its way then is lost to
its lease."""

GAP_WITHIN = 0.6
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


class _GrpcStreaming(Streaming[M]):
    """What the two have in common.

    :param engine: for everything but the stream.
    :param grpc: an engine for the stream alone.
    """

    def __init__(
        self,
        model: type[M],
        engine: Engine,
        pull: PullTransport[M],
        *,
        grpc: Engine,
        deliver: Deliver[M],
        report: Callable[[Event], None],
        wake: Wakeable,
    ) -> None:
        super().__init__(model, engine, pull, deliver=deliver, report=report, wake=wake)
        self._grpc = grpc
        self._call = _Call()
        self._last_arrival = 0.0

    def _read_call(self, call: _Call) -> None:
        """Read until the call is cancelled, or fails."""
        try:
            with self._grpc.connect() as connection:
                call.connection = cast("dbapi.Connection", connection.connection.dbapi_connection)
                if not call.is_cancelled:
                    self._read_responses(connection, call.connection)
            if not call.is_cancelled:
                raise OSError("the server has ended the stream")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # Raised again by look().
            if not call.is_cancelled:
                self._fail(error)

    def _read_responses(self, connection: Connection, driver: dbapi.Connection) -> None:
        """Hand over together what came together: whenever the driver is about to wait."""
        session = Session(connection, autoflush=False)
        messages: list[M] = []

        def hand_over() -> None:
            if messages:
                self._arrive(messages.copy())
                messages.clear()

        driver.before_waiting = hand_over
        # Without stream_results, which would keep one row back until there are more.
        for message in session.scalars(self._streaming()).yield_per(ROWS_AT_ONCE):
            session.expunge(message)
            messages.append(message)

    def _arrive(self, messages: list[M]) -> None:
        super()._arrive(messages)
        self._last_arrival = time.monotonic()

    def _wait_for_gap(self) -> None:
        end = time.monotonic() + GAP_WITHIN
        while self._last_arrival + GAP > time.monotonic() < end:
            self._sleep(GAP / 10)

    def close(self) -> None:
        super().close()
        self._grpc.dispose()


class GrpcTransport(_GrpcStreaming[M]):
    """Reads in a thread."""

    _reader: threading.Thread

    def _begin(self) -> None:
        self._call = _Call()
        self._reader = threading.Thread(target=self._read_call, args=(self._call,), daemon=True)
        self._reader.start()

    def _end(self) -> None:
        self._wait_for_gap()
        end = time.monotonic() + LEAVE_WITHIN
        while self._reader.is_alive() and time.monotonic() < end:
            self._call.cancel()  # Again, as it may not have begun yet.
            self._reader.join(0.05)


class AsyncGrpcTransport(_GrpcStreaming[M]):
    """Reads in a task, and is called from greenlets of SQLAlchemy's."""

    _reader: asyncio.Task[None]

    def _begin(self) -> None:
        self._call = _Call()
        self._loop = asyncio.get_running_loop()
        self._reader = self._loop.create_task(greenlet_spawn(self._read_call, self._call))

    def _end(self) -> None:
        self._wait_for_gap()
        self._call.cancel()
        await_only(asyncio.wait([self._reader], timeout=LEAVE_WITHIN))

    def confirm(self, messages: Sequence[M]) -> None:
        if in_greenlet():
            super().confirm(messages)
        elif self._loop.is_running():  # Another thread settles.
            confirming = greenlet_spawn(super().confirm, messages)
            asyncio.run_coroutine_threadsafe(confirming, self._loop).result(CONFIRM_WITHIN * 2)

    def _sleep(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))
