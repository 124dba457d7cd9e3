"""Work around two differences between vtgate and the MySQL that drivers and SQLAlchemy expect.

Importing this library does so for every engine of the process: the transactions and ``create_all``
of its users are at stake, not only its own connections.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

__all__ = ["translate_missing_table_errors"]

_DRIVERS = ("pymysql", "aiomysql", "asyncmy", "MySQLdb")

_TRUST_GREETING = ("pymysql", "aiomysql", "asyncmy")
"""Drivers that take the state of autocommit from the server's greeting."""

_UNKNOWN_ERROR = 1105
_NO_SUCH_TABLE = 1146


@event.listens_for(Pool, "connect")
def _apply_workarounds(dbapi_connection: Any, _record: object) -> None:
    # SQLAlchemy wraps an asyncio driver's connection in an object that resembles PyMySQL's.
    connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    driver = type(connection).__module__.partition(".")[0]
    if driver in _DRIVERS and "vitess" in connection.get_server_info().lower():
        translate_missing_table_errors()
        if driver in _TRUST_GREETING and connection.autocommit_mode is False:
            _turn_autocommit_off(dbapi_connection)


def _turn_autocommit_off(dbapi_connection: Any) -> None:
    """Send the statement that the driver considers unnecessary.

    Up to Vitess 23, vtgate's greeting says that autocommit is off, while it is on. When SQLAlchemy
    has the driver turn it off, the driver believes the greeting and sends nothing. Every statement
    then commits by itself, and ``rollback()`` undoes nothing: seen on v22.0.1 with PyMySQL 1.2,
    aiomysql 0.3, asyncmy 0.2.
    """
    cursor = dbapi_connection.cursor()
    cursor.execute("SET autocommit = 0")
    cursor.close()


def translate_missing_table_errors() -> None:
    """Make SQLAlchemy recognise from now on that a table doesn't exist.

    Called only when there is a vtgate: importing MySQL's dialect takes longer than importing this
    library.
    """
    from sqlalchemy.dialects.mysql.base import MySQLDialect

    if not event.contains(MySQLDialect, "do_execute", _translate_missing_table_error):
        event.listen(MySQLDialect, "do_execute", _translate_missing_table_error)


def _translate_missing_table_error(
    cursor: Any, statement: str, parameters: Any, _context: object
) -> bool | None:
    """Raise MySQL's error for a missing table in place of vtgate's.

    SQLAlchemy checks for a table by DESCRIBE and expects MySQL's error. A sharded keyspace returns
    another one, at which ``create_all`` and ``drop_all`` failed.
    """
    if not statement.startswith("DESCRIBE "):
        return None
    try:
        cursor.execute(statement, parameters)
    except Exception as error:
        code, *text = error.args
        if code == _UNKNOWN_ERROR and str(*text).endswith("not found"):
            raise type(error)(_NO_SUCH_TABLE, *text) from error
        raise
    return True
