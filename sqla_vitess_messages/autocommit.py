"""Make transactions work through vtgate with PyMySQL, and with the asyncio drivers like it.

vtgate's greeting says that autocommit is off, while it is on. The driver, asked by SQLAlchemy to
turn it off, believes the greeting and sends nothing. Every statement then commits by itself, and
``rollback()`` undoes nothing: seen on v22.0.1 with PyMySQL 1.2, aiomysql 0.3 and asyncmy 0.2. As no
message could commit with its data that way, importing this library mends it for every pool of the
process.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

_DRIVERS = ("pymysql", "aiomysql", "asyncmy")


@event.listens_for(Pool, "connect")
def _turn_autocommit_off(dbapi_connection: Any, _record: object) -> None:
    # An asyncio driver's connection is inside one that SQLAlchemy made to look like PyMySQL's.
    connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    if (
        type(connection).__module__.partition(".")[0] in _DRIVERS
        and connection.autocommit_mode is False
        and "vitess" in connection.get_server_info().lower()
    ):
        cursor = dbapi_connection.cursor()
        cursor.execute("SET autocommit = 0")
        cursor.close()
