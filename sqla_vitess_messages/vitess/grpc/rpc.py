"""Calls to one vtgate over gRPC, for threads and for asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from sqlalchemy.util import await_only

from .address import Address
from .library import grpc
from .vtgate_pb2 import ExecuteRequest, ExecuteResponse, StreamExecuteRequest, StreamExecuteResponse

__all__ = ["AsyncioRpc", "Rpc", "Stream", "ThreadedRpc"]

EXECUTE = "/vtgateservice.Vitess/Execute"
STREAM_EXECUTE = "/vtgateservice.Vitess/StreamExecute"

OPTIONS = [
    # vtgate refuses clients that send keepalive pings more often than every 10 s.
    ("grpc.keepalive_time_ms", 11_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Messages in transit are leased already. A window that doesn't grow bounds their number.
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A batch of large messages is one response. vtgate has a limit of its own.
    ("grpc.max_receive_message_length", -1),
]


class Stream(Protocol):
    """The responses of a streaming call, as they arrive."""

    def read(self) -> StreamExecuteResponse | None:
        """Wait for the next response. None at the end, or after :meth:`cancel`.

        :raises grpc.RpcError: when the call failed.
        """
        ...

    def cancel(self) -> None:
        """End the call, from any thread or from the event loop."""
        ...


class Rpc(Protocol):
    """The calls that a connection needs."""

    def execute(self, request: ExecuteRequest, timeout: float | None) -> ExecuteResponse:
        """Execute one statement.

        :param timeout: seconds.
        :raises grpc.RpcError: when there is no response.
        """
        ...

    def stream(self, request: StreamExecuteRequest) -> Stream:
        """Begin a streaming call."""
        ...

    def close(self) -> None:
        """Close the channel, and end all calls in progress."""
        ...


class ThreadedRpc:
    """Calls that block the thread."""

    def __init__(self, address: Address) -> None:
        credentials = address.credentials()
        self._metadata = address.metadata()
        self._channel = (
            grpc.insecure_channel(address.target, OPTIONS)
            if credentials is None
            else grpc.secure_channel(address.target, credentials, OPTIONS)
        )
        self._execute = self._channel.unary_unary(
            EXECUTE, ExecuteRequest.SerializeToString, ExecuteResponse.FromString
        )
        self._stream = self._channel.unary_stream(
            STREAM_EXECUTE,
            StreamExecuteRequest.SerializeToString,
            StreamExecuteResponse.FromString,
        )

    def execute(self, request: ExecuteRequest, timeout: float | None) -> ExecuteResponse:
        return self._execute(request, timeout=timeout, metadata=self._metadata)

    def stream(self, request: StreamExecuteRequest) -> Stream:
        return _ThreadedStream(self._stream(request, metadata=self._metadata))

    def close(self) -> None:
        self._channel.close()


class _ThreadedStream:
    def __init__(self, call: Any) -> None:
        self._call = call
        self._cancelled = False

    def read(self) -> StreamExecuteResponse | None:
        try:
            return next(self._call, None)
        except grpc.RpcError:
            if self._cancelled:
                return None
            raise

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()


class AsyncioRpc:
    """Calls that wait in the event loop, made in greenlets of SQLAlchemy's asyncio extension."""

    def __init__(self, address: Address) -> None:
        credentials = address.credentials()
        self._metadata = address.metadata()
        self._channel = (
            grpc.aio.insecure_channel(address.target, OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address.target, credentials, OPTIONS)
        )
        self._execute = self._channel.unary_unary(
            EXECUTE, ExecuteRequest.SerializeToString, ExecuteResponse.FromString
        )
        self._stream = self._channel.unary_stream(
            STREAM_EXECUTE,
            StreamExecuteRequest.SerializeToString,
            StreamExecuteResponse.FromString,
        )

    def execute(self, request: ExecuteRequest, timeout: float | None) -> ExecuteResponse:
        return await_only(self._execute(request, timeout=timeout, metadata=self._metadata))

    def stream(self, request: StreamExecuteRequest) -> Stream:
        return _AsyncioStream(self._stream(request, metadata=self._metadata))

    def close(self) -> None:
        await_only(self._channel.close())


class _AsyncioStream:
    def __init__(self, call: Any) -> None:
        self._call = call
        self._cancelled = False

    def read(self) -> StreamExecuteResponse | None:
        try:
            response = await_only(self._call.read())
        except (asyncio.CancelledError, grpc.RpcError):
            if self._cancelled:
                return None
            raise
        return None if response is grpc.aio.EOF else response

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()
