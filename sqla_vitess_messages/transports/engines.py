"""Engines of a subscriber's own, set up for leasing."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import InvalidArgument, InvalidArgumentType
from ..vitess.server import is_mysql, is_pymysql, is_sqlite, is_vitess_grpc

__all__ = [
    "READ_TIMEOUT",
    "Bind",
    "configure_engine",
    "copy_engine",
    "dedicated_engine",
    "set_read_timeout",
]

READ_TIMEOUT = 10.0
"""Seconds of silence after which a server counts as gone."""

Bind = str | URL | Engine
"""The database of a subscriber: a URL, or an Engine whose settings it copies."""


def dedicated_engine(bind: Bind) -> Engine:
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
            f"bind: {engine.url.drivername} is a driver for asyncio; use AsyncSubscriber, or a URL "
            "such as sqlite:///app.db or mysql+pymysql://user@host:3306/keyspace"
        )
    configure_engine(engine)
    return engine


def _connect_args(url: URL) -> dict[str, Any]:
    """Bound the wait for the greeting of a server that hangs, before which there is no event."""
    if url.get_driver_name() != "pymysql" or "read_timeout" in url.query:
        return {}
    return {"read_timeout": READ_TIMEOUT}


def copy_engine(engine: Engine) -> Engine:
    """Return an engine with the same settings, and no connection yet."""
    return Engine(
        engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=engine.hide_parameters
    )


def configure_engine(engine: Engine) -> None:
    """Set up a subscriber's engine for leasing.

    :raises InvalidArgument: for a SQLite database in memory, and for other databases.
    """
    if is_sqlite(engine.dialect):
        _configure_sqlite(engine)
    elif is_mysql(engine.dialect):
        _configure_mysql(engine)
    else:
        raise InvalidArgument(
            f"bind: a {engine.url.get_backend_name()} database; supported are SQLite, MySQL, "
            "MariaDB, Vitess"
        )


def _configure_mysql(engine: Engine) -> None:
    """Lock rows only: at MySQL's default isolation level a pull also locks the gaps between them,
    and producers meet deadlocks.

    :raises InvalidArgument: for a database that names one shard, or the replicas, of a keyspace.
    """
    database = engine.url.database or ""
    if ":" in database or "@" in database:
        raise InvalidArgument(
            f"bind: its database is {database!r}; name the keyspace alone, and use "
            "transport=Pull(shards=['-80']) to receive from some of its shards"
        )

    def read_committed(dbapi_connection: Any, _record: object) -> None:
        engine.dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")

    event.listen(engine, "connect", read_committed)
    set_read_timeout(engine, READ_TIMEOUT)


def _configure_sqlite(engine: Engine) -> None:
    """Begin each transaction with SQLite's write lock: so a pull can't fail half-way."""
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


def set_read_timeout(engine: Engine, seconds: float) -> None:
    """Make a read on one of the engine's connections fail after so many seconds.

    PyMySQL accepts this as an argument of ``connect()`` only, and a copied engine has its own.
    """

    def set_timeout(dbapi_connection: Any, _record: object) -> None:
        if is_pymysql(engine.dialect):
            dbapi_connection._read_timeout = seconds
        elif is_vitess_grpc(engine.dialect):
            dbapi_connection.timeout = seconds

    event.listen(engine, "connect", set_timeout)
