"""Engines of a subscriber's own, set up for leasing."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import AssertionPool, ConnectionPoolEntry, SingletonThreadPool, StaticPool

from ..errors import InvalidArgument, InvalidArgumentType
from ..forking import keep_for_ever
from ..rows.sqlite import is_in_transaction, use_legacy_mode
from ..shown import shown
from ..urls import parse_url
from ..vitess.server import is_mysql, is_pymysql, is_sqlite, is_vitess_grpc

__all__ = [
    "READS_ONLY",
    "READ_TIMEOUT",
    "Bind",
    "check_is_file",
    "check_is_file_url",
    "configure_engine",
    "copy_engine",
    "dedicated_engine",
    "leave_to_parent",
    "set_read_timeout",
]

READ_TIMEOUT = 10.0
"""Seconds of silence after which a server counts as gone."""

_IN_MEMORY = (
    "bind: a SQLite database in memory belongs to one connection, and a subscriber has its own; "
    "use a file, as in sqlite:///app.db"
)

_SHORT_LOCK_WAIT = "SET SESSION innodb_lock_wait_timeout = 1"
"""Seconds that a statement waits for a row that another transaction has locked."""

UTF8 = "utf8mb4"
"""MySQL's name of the character set that has every character. In place of one that a connection's
own set lacks, MySQL sends a question mark. vtgate sends UTF-8 whatever the set is.
"""

READS_ONLY = "sqla_vitess_messages_reads_only"
"""An execution option of connections that write nothing, and so need no write lock of SQLite."""

NOT_COPIED = ("isolation_level", "max_row_buffer", "stream_results", "yield_per")
"""Execution options that a subscriber's own statements can't have: it chooses the isolation level,
and reads each result as a whole."""

Bind = str | URL | Engine
"""The database of a subscriber: a URL, or an Engine whose settings it copies."""


def dedicated_engine(bind: Bind) -> Engine:
    """Return an engine that shares no connection with any other, and isn't connected yet.

    :raises InvalidArgument: for a URL that can't be parsed, and for what no subscriber can use.
    :raises InvalidArgumentType: for anything but a URL or an Engine.
    """
    if isinstance(bind, Engine):
        engine = copy_engine(bind)
    elif isinstance(bind, (str, URL)):
        try:
            url = parse_url(bind)
            engine = create_engine(url, connect_args=_connect_args(url))
            check_is_file_url(engine)
        except ArgumentError as error:
            raise InvalidArgument(
                "bind: expected a database URL such as sqlite:///app.db or "
                "mysql+pymysql://user@host:3306/keyspace"
            ) from error
    else:
        raise InvalidArgumentType(f"bind={shown(bind)}: expected a URL or an Engine")
    if engine.dialect.is_async:
        raise InvalidArgument(
            f"bind: {engine.url.drivername} is a driver for asyncio; use AsyncSubscriber, or a URL "
            "such as sqlite:///app.db or mysql+pymysql://user@host:3306/keyspace"
        )
    configure_engine(engine)
    return engine


def check_is_file_url(engine: Engine) -> None:
    """Check that the URL of an engine isn't that of a SQLite database in memory.

    :raises InvalidArgument: with the remedy.
    """
    database, query = engine.url.database, str(engine.url.query)
    is_file = database and ":memory:" not in database and "mode=memory" not in query
    if is_sqlite(engine.dialect) and not is_file:
        raise InvalidArgument(_IN_MEMORY)


def check_is_file(connection: Connection, table: Table) -> None:
    """Check that a table isn't in a SQLite database in memory.

    The connection knows it: an Engine with ``creator=`` may have any URL.

    :raises InvalidArgument: with the remedy.
    """
    if is_sqlite(connection.dialect):
        schema = connection.schema_for_object(table) or "main"
        for _number, name, file in connection.exec_driver_sql("PRAGMA database_list"):
            if name == schema and not file:
                raise InvalidArgument(_IN_MEMORY)


def _connect_args(url: URL) -> dict[str, Any]:
    """Bound the wait for the greeting of a server that hangs, before which there is no event."""
    if url.get_driver_name() != "pymysql" or "read_timeout" in url.query:
        return {}
    return {"read_timeout": READ_TIMEOUT}


def copy_engine(engine: Engine, **options: Any) -> Engine:
    """Return an engine with the same settings, and no connection yet.

    It has the pool's events and the execution options, such as ``schema_translate_map``, except for
    :data:`NOT_COPIED`.

    :param options: execution options to add.
    """
    pool = engine.pool.recreate()
    if isinstance(pool, SingletonThreadPool):
        pool.size = max(pool.size, 1000)  # Beyond that it closes what other threads use.
    kept = {name: value for name, value in engine.get_execution_options().items()
            if name not in NOT_COPIED}  # fmt: skip
    return Engine(
        pool,
        engine.dialect,
        engine.url,
        execution_options=kept | options,
        hide_parameters=engine.hide_parameters,
    )


def configure_engine(engine: Engine) -> None:
    """Set up a subscriber's engine for leasing.

    :raises InvalidArgument: for a pool with one connection alone, and for other databases.
    """
    if isinstance(engine.pool, (StaticPool, AssertionPool)):
        raise InvalidArgument(
            f"bind: its poolclass is {type(engine.pool).__name__}, which has one connection; a "
            "subscriber uses several at the same time, and so needs a database in a file or on a "
            "server, and an Engine with another poolclass"
        )
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
    """Receive every character; lock rows only, and wait for them for a moment only.

    At MySQL's default isolation level a pull also locks the gaps between rows, and producers meet
    deadlocks. MySQL waits 50 s for a row that another transaction has locked, and with it all that
    the subscriber has to do.

    :raises InvalidArgument: for a database that names one shard, or the replicas, of a keyspace.
    """
    database = engine.url.database or ""
    if ":" in database or "@" in database:
        raise InvalidArgument(
            "bind: its database has a ':' or '@', which is a shard or a tablet type of a keyspace; "
            "name the keyspace alone, and use transport=Pull(shards=['-80']) to receive from some "
            "of its shards"
        )

    def set_up(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
        _receive_every_character(dbapi_connection, record.driver_connection)
        engine.dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")
        cursor = dbapi_connection.cursor()
        cursor.execute(_SHORT_LOCK_WAIT)
        cursor.close()

    event.listen(engine, "connect", set_up)
    set_read_timeout(engine, READ_TIMEOUT)


def _receive_every_character(dbapi_connection: Any, driver: Any) -> None:
    """Set a connection's character set, whatever its URL asks for."""
    if getattr(dbapi_connection, "character_set_name", lambda: UTF8)() == UTF8:
        return
    if hasattr(driver, "set_character_set"):
        driver.set_character_set(UTF8)
        return
    # Of asyncio. They have set_charset, but asyncmy's fails.
    cursor = dbapi_connection.cursor()
    cursor.execute(f"SET NAMES {UTF8}")
    cursor.close()
    driver._charset, driver._encoding = UTF8, "utf8"


def _configure_sqlite(engine: Engine) -> None:
    """Begin each transaction with SQLite's write lock: so a pull can't fail half-way."""

    def leave_transactions_to_sqlalchemy(
        dbapi_connection: Any, record: ConnectionPoolEntry
    ) -> None:
        use_legacy_mode(record.driver_connection)
        dbapi_connection.isolation_level = None

    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if is_in_transaction(driver):  # By a listener on the class Engine, perhaps.
            connection.exec_driver_sql("ROLLBACK")
        reads = connection.get_execution_options().get(READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", leave_transactions_to_sqlalchemy)
    event.listen(engine, "begin", begin)


def leave_to_parent(engine: Engine) -> None:
    """Forget an engine's connections in a process that was forked. New ones are its own."""
    inherited = engine.pool
    engine.dispose(close=False)
    if engine.dialect.is_async or is_sqlite(engine.dialect):
        # If asyncio's transports were closed, the selector would forget them, also for the parent.
        # SQLite forbids a process to close what its parent has opened.
        keep_for_ever(inherited)


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
