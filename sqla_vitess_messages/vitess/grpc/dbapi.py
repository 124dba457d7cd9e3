"""The part of the Python database API that SQLAlchemy needs, over vtgate's gRPC protocol.

Statements have vtgate's own bind variables, ``:name``. A session's state is sent with each call and
returned with the response: vtgate keeps none, and doesn't notice that a client is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from pymysql.constants import CR, ER
from pymysql.err import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,  # noqa: A004  # The name that the API prescribes.
    error_map,
)

from ...forking import forget_in_child, keep_for_ever
from .address import Address
from .library import grpc
from .process import check_process, note_use
from .rpc import AsyncioRpc, Rpc, Stream, ThreadedRpc
from .values import Converter, bind_variables, converter_of, decode, split
from .vtgate_pb2 import (
    BoundQuery,
    ExecuteOptions,
    ExecuteRequest,
    Field,
    QueryResult,
    Row,
    Session,
    StreamExecuteRequest,
)

__all__ = [
    "Binary",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "ResultStream",
    "Warning",
    "connect",
]

apilevel = "2.0"
threadsafety = 1
paramstyle = "named"
Binary = bytes

ALL_METADATA = 2
"""``ExecuteOptions.IncludedFields.ALL``: a result's fields come with all their metadata."""

_ERRNO = re.compile(r"\(errno (\d+)\) \(sqlstate \w{5}\)")

_ERRNO_OF_CODE = {
    grpc.StatusCode.CANCELLED: ER.QUERY_INTERRUPTED,
    grpc.StatusCode.ABORTED: ER.QUERY_INTERRUPTED,
    grpc.StatusCode.PERMISSION_DENIED: ER.ACCESS_DENIED_ERROR,
    grpc.StatusCode.UNAUTHENTICATED: ER.ACCESS_DENIED_ERROR,
    grpc.StatusCode.UNIMPLEMENTED: ER.NOT_SUPPORTED_YET,
}
"""MySQL's error numbers for errors without one, as vtgate maps them for the MySQL protocol."""

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_TOO_LARGE = "message larger than max"
"""In the text of an error for a response, or a request, of more bytes than gRPC may transfer."""

_LOST_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
"""The codes of calls that got no response from vtgate."""


def connect(
    address: Address, keyspace: str, *, timeout: float | None = None, is_async: bool = False
) -> Connection:
    """Return a connection. Nothing is sent before it is used.

    :param timeout: seconds that a statement may take. A stream, which has no end, is exempt.
    :param is_async: whether it is used in greenlets of SQLAlchemy's asyncio extension.
    :raises MessageQueueError: in a process that was forked, if its parent had used gRPC.
    """
    note_use()
    return Connection(AsyncioRpc(address) if is_async else ThreadedRpc(address), keyspace, timeout)


class Connection:
    """A session of vtgate.

    gRPC's own threads and locks don't survive a fork. So a child can have no connection after its
    parent had one, and leaves those of its parent as they are.
    """

    def __init__(self, rpc: Rpc, keyspace: str, timeout: float | None) -> None:
        self._rpc = rpc
        self._session = Session(
            autocommit=False,
            target_string=keyspace,
            options=ExecuteOptions(included_fields=ALL_METADATA, client_found_rows=True),
            enable_system_settings=True,
        )
        self._streams: set[ResultStream] = set()
        self._closed = False
        self.timeout = timeout
        self.before_waiting: Callable[[], None] = _do_nothing
        """Called when all rows received from a stream are read, before waiting for more."""
        self.kept_stream: ResultStream | None = None
        """A stream that outlives the cursors that read it: the next one goes on where one ended."""
        self._is_parents = False
        forget_in_child(self)

    def cursor(self) -> Cursor:
        return Cursor(self)

    def autocommit(self, value: bool) -> None:
        """Set whether each statement commits by itself. An open transaction is committed."""
        if value != self.get_autocommit():
            self.commit()
            self._session.autocommit = value

    def get_autocommit(self) -> bool:
        return self._session.autocommit

    def commit(self) -> None:
        self._end("commit")

    def rollback(self) -> None:
        self._end("rollback")

    def close(self) -> None:
        """Cancel the streams and roll back: vtgate would keep a transaction until its timeout."""
        if self._is_parents:
            return
        self.cancel_streams()
        with suppress(Error):
            self.rollback()
        self._closed = True
        self._rpc.close()

    def forget_parent(self) -> None:
        """Leave the connection, and its streams, to the process that opened it."""
        self._is_parents = True
        keep_for_ever(self)  # gRPC cancels calls that are finalized, and closes their channel.

    def cancel_streams(self) -> None:
        """Cancel the streams: reads that wait in any thread end."""
        for stream in list(self._streams):
            stream.cancel()

    def ping(self) -> None:
        """Check that vtgate responds.

        :raises OperationalError: when it doesn't.
        """
        self.execute("SELECT 1", {})

    def get_server_info(self) -> str:
        """Return the server's version, as in the greeting of the MySQL protocol."""
        cursor = self.cursor()
        cursor.execute("SELECT @@version")
        [(version,)] = cursor.fetchall()
        return str(version)

    def character_set_name(self) -> str:
        return "utf8mb4"

    def execute(self, sql: str, parameters: Mapping[str, Any]) -> QueryResult:
        """Execute one statement.

        :raises Error: of the class that PyMySQL raises for the same error.
        """
        check_process()
        if self._closed:
            raise OperationalError(CR.CR_SERVER_LOST, "the connection was closed")
        query = BoundQuery(sql=sql, bind_variables=bind_variables(parameters))
        request = ExecuteRequest(session=self._session, query=query)
        try:
            response = self._rpc.execute(request, self.timeout)
        except grpc.RpcError as error:
            raise _lost(error) from error
        if response.HasField("session"):
            self._session = response.session
        if response.HasField("error"):
            raise _error(_CODES.get(response.error.code), response.error.message)
        return response.result

    def open_stream(self, sql: str) -> ResultStream:
        """Execute a statement whose result has no end, outside of any transaction."""
        check_process()
        session = Session(
            autocommit=True,
            target_string=self._session.target_string,
            options=ExecuteOptions(included_fields=ALL_METADATA),
        )
        request = StreamExecuteRequest(session=session, query=BoundQuery(sql=sql))
        stream = ResultStream(self, self._rpc.stream(request))
        self._streams.add(stream)
        return stream

    def discard_stream(self, stream: ResultStream) -> None:
        """Forget a stream that has ended."""
        self._streams.discard(stream)

    def _end(self, statement: str) -> None:
        if self._session.in_transaction:
            self.execute(statement, {})


class ResultStream:
    """A result that arrives in parts. It holds the last one."""

    def __init__(self, connection: Connection, call: Stream) -> None:
        self._connection = connection
        self._call = call
        self.fields: Sequence[Field] = ()
        self.rows: Sequence[Row] = ()
        self.has_ended = False

    def read(self) -> bool:
        """Wait for the next part.

        :return: False when there is none, because the stream has ended.
        :raises Error: when the call failed.
        """
        self._connection.before_waiting()
        self.rows = ()
        try:
            response = self._call.read()
        except grpc.RpcError as error:
            self.close()
            raise _lost(error) from error
        if response is None:
            self.close()
            return False
        self.fields = response.result.fields or self.fields
        self.rows = response.result.rows
        return True

    def integers(self, *names: str) -> list[tuple[int | None, ...]]:
        """Return some columns of the last part. Their values are integers, or None.

        :param names: of the columns. One that isn't in the result counts as None.
        """
        positions = {field.name: number for number, field in enumerate(self.fields)}
        wanted = [positions.get(name) for name in names]
        found = []
        for values in split(self.rows):
            raw = [None if position is None else values[position] for position in wanted]
            found.append(tuple(None if value is None else int(value) for value in raw))
        return found

    def cancel(self) -> None:
        """End the call, from any thread or from the event loop: a read that waits returns."""
        self._call.cancel()

    def close(self) -> None:
        """End the call, by whoever reads it."""
        self.has_ended = True
        self._connection.discard_stream(self)
        self.cancel()


class Cursor:
    """Holds a whole result, or one part at a time of ``stream * from t``, which has no end."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stream: ResultStream | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._position = 0
        self._converters: list[Converter | None] = []
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self.lastrowid = 0

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> int:
        if sql.startswith("stream "):
            self._stream = self._connection.kept_stream or self._connection.open_stream(sql)
            rows = self._stream.rows if not self._stream.fields and self._stream.read() else ()
            if not self._stream.fields:
                raise OperationalError(CR.CR_SERVER_LOST, "vtgate has ended the stream")
            self._load(self._stream.fields, rows)
            return self.rowcount
        result = self._connection.execute(sql, parameters or {})
        self._load(result.fields, result.rows)
        self.rowcount = len(self._rows) if result.fields else result.rows_affected
        self.lastrowid = result.insert_id
        return self.rowcount

    def executemany(self, sql: str, parameters: Sequence[Mapping[str, Any]]) -> int:
        self.rowcount = sum(self.execute(sql, values) for values in parameters)
        return self.rowcount

    def fetchone(self) -> tuple[Any, ...] | None:
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return at most ``size`` rows. In a stream, at most those that arrived together."""
        while self._position >= len(self._rows):
            if self._stream is None or not self._stream.read():
                return []
            self._load((), self._stream.rows)
        start, self._position = self._position, self._position + (size or self.arraysize)
        return self._rows[start : self._position]

    def fetchall(self) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        while some := self.fetchmany(len(self._rows) or 1):
            rows += some
        return rows

    def close(self) -> None:
        self._rows = []
        stream, self._stream = self._stream, None
        if stream is not None and stream is not self._connection.kept_stream:
            stream.close()

    async def _async_soft_close(self) -> None:
        """Do nothing. SQLAlchemy's asyncio extension calls this."""

    def _load(self, fields: Sequence[Field], rows: Sequence[Row]) -> None:
        if fields:
            self._converters = [converter_of(field) for field in fields]
            self.description = [
                (field.name, field.type, None, None, None, None, None) for field in fields
            ]
        self._rows, self._position = decode(rows, self._converters), 0


def _do_nothing() -> None:
    pass


def _lost(error: grpc.RpcError) -> Error:
    """Return the error of a call that failed before its end."""
    # The error of a call is a Call as well, which its class doesn't declare.
    call = cast("grpc.Call", error)
    code, text = call.code(), str(call.details())
    if code in _LOST_CODES and not _ERRNO.search(text):
        return OperationalError(CR.CR_SERVER_LOST, f"lost vtgate ({code.name}): {text}")
    return _error(code, text)


def _error(code: grpc.StatusCode | None, text: str) -> Error:
    found = _ERRNO.search(text)
    if _TOO_LARGE in text:
        return OperationalError(ER.NET_PACKET_TOO_LARGE, text)
    number = int(found[1]) if found else _ERRNO_OF_CODE.get(code, ER.UNKNOWN_ERROR)  # type: ignore[arg-type]
    return error_map.get(number, OperationalError)(number, text)
