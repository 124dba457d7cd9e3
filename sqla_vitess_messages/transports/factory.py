"""Choose the transport by what the database is, and give it an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from ..ddl import MYSQL, check_database, is_vitess, queue_table
from ..errors import InvalidArgument, InvalidArgumentType
from ..events import Event
from .base import M, Transport, bound_reads
from .pull import PullTransport
from .shards import choose_shards, find_shards
from .stream import StreamTransport

TransportName = Literal["auto", "stream", "pull"]

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


def copy_engine(engine: Engine) -> Engine:
    """Return an engine with the same settings, and no connection yet."""
    return Engine(
        engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=engine.hide_parameters
    )


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


def make_transport(
    model: type[M],
    engine: Engine,
    name: TransportName,
    *,
    poll_interval: float,
    shards: Sequence[str] | None,
    report: Callable[[Event], None],
) -> Transport[M]:
    """Connect, check that the queue is there, and return the transport.

    ``auto`` pulls on every database. With vtgate's default flags a stream over the MySQL protocol
    delivers later, and with any flags it may lease more than it was asked for. The figures are in
    docs/explanation/transports.md.

    :raises QueueNotFound: when the table is missing, or is not the model's queue.
    :raises InvalidArgument: when the database can't do what ``name`` says, or has no such shards.
    """
    vitess = look_at_database(model, engine, shards)
    if name == "stream":
        if not vitess:
            raise InvalidArgument(
                f"transport='stream': the {engine.dialect.name} database is no Vitess and "
                "streams nothing; use 'pull' or 'auto'"
            )
        if engine.dialect.driver != "pymysql":
            raise InvalidArgument(
                f"transport='stream': needs the driver pymysql, not {engine.dialect.driver}"
            )
        if shards is not None:
            raise InvalidArgument(
                "transport='stream': vtgate streams from all shards, whatever is asked for; use "
                "'pull' or 'auto' to receive from some"
            )
        return StreamTransport(model, engine, report)
    return PullTransport(model, engine, vitess=vitess, poll_interval=poll_interval, shards=shards)


def look_at_database(model: type[M], engine: Engine, shards: Sequence[str] | None) -> bool:
    """Check that the queue is there, in these shards, and say whether this is Vitess.

    :raises QueueNotFound: when the table is missing, or is not the model's queue.
    :raises InvalidArgument: when there are no such shards.
    """
    with engine.connect() as connection:
        check_database(connection, queue_table(model))
        vitess = is_vitess(connection)
    if shards is not None:
        choose_shards(find_shards(engine) or [] if vitess else [], shards)
    return vitess


def check_transport_name(name: str) -> None:
    """Refuse a name that no transport has."""
    if name not in get_args(TransportName):
        raise InvalidArgument(f"transport={name!r}: expected one of {get_args(TransportName)}")


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
