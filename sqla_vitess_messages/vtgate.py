"""Mend two things that vtgate does otherwise than the MySQL that drivers and SQLAlchemy expect.

Importing this library does it for every engine of the process: its users' transactions and
``create_all`` are at stake, not its own connections alone.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

_DRIVERS = ("pymysql", "aiomysql", "asyncmy", "MySQLdb")

_MISLED = ("pymysql", "aiomysql", "asyncmy")
"""Drivers that take vtgate's greeting at its word."""

_UNKNOWN_ERROR = 1105
_NO_SUCH_TABLE = 1146


@event.listens_for(Pool, "connect")
def _mend(dbapi_connection: Any, _record: object) -> None:
    # An asyncio driver's connection is inside one that SQLAlchemy made to look like PyMySQL's.
    connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    driver = type(connection).__module__.partition(".")[0]
    if driver in _DRIVERS and "vitess" in connection.get_server_info().lower():
        mend_describe()
        if driver in _MISLED and connection.autocommit_mode is False:
            _turn_autocommit_off(dbapi_connection)


def _turn_autocommit_off(dbapi_connection: Any) -> None:
    """Send what the driver thinks it needn't send.

    vtgate's greeting says that autocommit is off, while it is on. The driver, asked by SQLAlchemy
    to turn it off, believes the greeting and sends nothing. Every statement then commits by itself,
    and ``rollback()`` undoes nothing: seen on v22.0.1 with PyMySQL 1.2, aiomysql 0.3, asyncmy 0.2.
    """
    cursor = dbapi_connection.cursor()
    cursor.execute("SET autocommit = 0")
    cursor.close()


def mend_describe() -> None:
    """Let SQLAlchemy see from now on that a table isn't there.

    Only when there is a vtgate: to import MySQL's dialect takes longer than all of this library.
    """
    from sqlalchemy.dialects.mysql.base import MySQLDialect

    if not event.contains(MySQLDialect, "do_execute", _tell_a_missing_table):
        event.listen(MySQLDialect, "do_execute", _tell_a_missing_table)


def _tell_a_missing_table(
    cursor: Any, statement: str, parameters: Any, _context: object
) -> bool | None:
    """Turn one error into another.

    SQLAlchemy asks by DESCRIBE, and waits for MySQL's error for that. A sharded keyspace has
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
