"""Choose the transport by what the database is, and give it an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from ..ddl import MYSQL, check_database, is_vitess, queue_table
from ..errors import InvalidArgument, InvalidArgumentType
from ..events import Event
from ..wakeups import Wakeable
from .base import GRPC, Deliver, M, Transport, bound_reads, copy_engine
from .grpc_stream import AsyncGrpcTransport, GrpcTransport
from .pull import PullTransport
from .shards import choose_shards, find_shards
from .stream import StreamTransport

TransportName = Literal["auto", "stream", "grpc", "pull"]

READ_TIMEOUT = 10.0
"""Seconds of silence after which a server counts as gone."""

Bind = Union[str, URL, Engine]


def own_engine(bind: Bind) -> Engine:
    """Return an engine that shares no connection with any other, and isn't connected yet.

    :raises InvalidArgument: for a URL that can't be parsed or a SQLite database in memory.
    :raises InvalidArgumentType: for anything but a URL or an Engine.
    """
    if isinstance(bind, Engine):
        engine = copy_engine(bind)
    elif isinstance(bind, (str, URL)):
        try:
            url = make_url(bind)
            engine = create_engine(url, connect_args=_connect_args(url))
        except ArgumentError as error:
            raise InvalidArgument(
                "bind: expected a database URL such as sqlite:///app.db or "
                "mysql+pymysql://user@host:3306/keyspace"
            ) from error
    else:
        raise InvalidArgumentType(f"bind={bind!r}: expected a URL or an Engine")
    if engine.dialect.is_async:
        raise InvalidArgument(
            f"bind: {engine.dialect.driver} is a driver for asyncio; use AsyncSubscriber, or a URL "
            "such as sqlite:///app.db or mysql+pymysql://user@host:3306/keyspace"
        )
    prepare(engine)
    return engine


def prepare(engine: Engine) -> None:
    """Set a subscriber's engine up for leasing.

    :raises InvalidArgument: for a SQLite database in memory, and for other databases.
    """
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    elif engine.dialect.name in MYSQL:
        _prepare_mysql(engine)
    else:
        raise InvalidArgument(
            f"bind: a {engine.dialect.name} database; supported are SQLite, MySQL, MariaDB, Vitess"
        )


def check_transport(
    engine: Engine, name: TransportName, grpc: str | URL | None, shards: Sequence[str] | None
) -> None:
    """Refuse what doesn't go together, before anything is connected.

    :raises InvalidArgument: with what would.
    """
    if name not in get_args(TransportName):
        raise InvalidArgument(f"transport={name!r}: expected one of {get_args(TransportName)}")
    if grpc is not None:
        if name not in ("auto", "grpc"):
            raise InvalidArgument(f"grpc: transport={name!r} doesn't use it; leave one of them out")
        _grpc_engine(engine, grpc)
    elif name == "grpc" and engine.dialect.driver != GRPC:
        raise InvalidArgument(
            "transport='grpc': give vtgate's address for gRPC, as in grpc='host:15991' or in a "
            "bind such as vitess+grpc://user@host:15991/keyspace"
        )
    if name in ("stream", "grpc") and shards is not None:
        raise InvalidArgument(
            f"transport={name!r}: vtgate streams from all shards, whatever is asked for; use "
            "'pull' or 'auto' to receive from some"
        )
    if name == "stream" and engine.dialect.driver != "pymysql":
        raise InvalidArgument(
            f"transport='stream': needs the driver pymysql, not {engine.dialect.driver}"
        )


def make_transport(
    model: type[M],
    engine: Engine,
    name: TransportName,
    *,
    poll_interval: float,
    shards: Sequence[str] | None,
    grpc: str | URL | None,
    deliver: Deliver[M],
    report: Callable[[Event], None],
    wake: Wakeable,
) -> Transport[M]:
    """Connect, check that the queue is there, and return the transport.

    ``auto`` streams over gRPC where it has an address for that, and pulls everywhere else. With
    vtgate's default flags a stream over the MySQL protocol delivers later, and with any flags it
    may lease more than it was asked for. The figures are in docs/explanation/transports.md.

    :raises QueueNotFound: when the table is missing, or is not the model's queue.
    :raises InvalidArgument: when the database can't do what ``name`` says, or has no such shards.
    """
    vitess = look_at_database(model, engine, shards)
    pull = PullTransport(
        model,
        engine,
        vitess=vitess,
        poll_interval=poll_interval,
        shards=shards,
        deliver=deliver,
        wake=wake,
    )
    if name == "auto" and shards is None and (grpc is not None or engine.dialect.driver == GRPC):
        name = "grpc"
    if name in ("auto", "pull"):
        return pull
    if not vitess:
        raise InvalidArgument(
            f"transport={name!r}: the {engine.dialect.name} database is no Vitess and streams "
            "nothing; use 'pull' or 'auto'"
        )
    if name == "stream":
        return StreamTransport(model, engine, pull, deliver=deliver, report=report, wake=wake)
    kind = AsyncGrpcTransport if engine.dialect.is_async else GrpcTransport
    streaming = _grpc_engine(engine, grpc)
    return kind(model, engine, pull, grpc=streaming, deliver=deliver, report=report, wake=wake)


def _grpc_engine(engine: Engine, grpc: str | URL | None) -> Engine:
    """Return an engine for the stream alone: it shares no connection with what pulls.

    :raises InvalidArgument: for what is neither ``host:port`` nor a URL for gRPC.
    """
    if grpc is None:
        return copy_engine(engine)
    url = _grpc_url(engine, grpc)
    try:
        if engine.dialect.is_async:
            from sqlalchemy.ext.asyncio import create_async_engine

            made = create_async_engine(url).sync_engine
        else:
            made = create_engine(url)
    except ArgumentError as error:
        raise InvalidArgument(f"grpc: {error}") from error
    bound_reads(made, READ_TIMEOUT)
    return made


def _grpc_url(engine: Engine, grpc: str | URL) -> URL:
    """Return where to stream from."""
    try:
        text = grpc if isinstance(grpc, URL) or "://" in grpc else f"vitess+grpc://{grpc}"
        url = make_url(text)
    except (ArgumentError, TypeError, ValueError):
        url = engine.url
    if url.drivername != "vitess+grpc" or not url.host:
        raise InvalidArgument(
            "grpc: expected vtgate's host:port, or a URL such as "
            "vitess+grpc://user@host:15991/keyspace"
        )
    bound = engine.url
    url = url.set(database=url.database or bound.database)
    if url.username is None:
        url = url.set(username=bound.username, password=bound.password)
    return url


def look_at_database(model: type[M], engine: Engine, shards: Sequence[str] | None) -> bool:
    """Check that the queue is there, in these shards, and say whether this is Vitess.

    :raises QueueNotFound: when the table is missing, or is not the model's queue.
    :raises InvalidArgument: when there are no such shards.
    """
    with engine.connect() as connection:
        check_database(connection, queue_table(model))
        vitess = is_vitess(connection)
    if shards is not None:
        found = find_shards(engine) if vitess else []
        if found is not None:
            choose_shards(found, shards)
    return vitess


def _connect_args(url: URL) -> dict[str, Any]:
    """Let the greeting of a server that hangs time out, too: no event comes before it."""
    if url.get_driver_name() != "pymysql" or "read_timeout" in url.query:
        return {}
    return {"read_timeout": READ_TIMEOUT}


def _prepare_mysql(engine: Engine) -> None:
    """Lock rows only: at the default level a pull locks the gaps between them as well, and
    producers meet deadlocks.

    :raises InvalidArgument: for a database that names one shard, or the replicas, of a keyspace.
    """
    database = engine.url.database or ""
    if ":" in database or "@" in database:
        raise InvalidArgument(
            f"bind: its database is {database!r}; name the keyspace alone, and use "
            "shards=['-80'] to receive from some of its shards"
        )

    def read_committed(dbapi_connection: Any, _record: object) -> None:
        engine.dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")

    event.listen(engine, "connect", read_committed)
    bound_reads(engine, READ_TIMEOUT)


def _prepare_sqlite(engine: Engine) -> None:
    """Make each transaction take SQLite's write lock at once: then a pull can't fail half-way."""
    database = engine.url.database
    if not database or ":memory:" in database or "mode=memory" in str(engine.url.query):
        raise InvalidArgument(
            "bind: a SQLite database in memory belongs to one connection, and a subscriber has "
            "its own; use a file, as in sqlite:///app.db"
        )

    def leave_transactions_to_sqlalchemy(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", leave_transactions_to_sqlalchemy)
    event.listen(engine, "begin", begin)
