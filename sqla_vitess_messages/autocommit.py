"""Make transactions work through vtgate with PyMySQL.

vtgate's greeting says that autocommit is off, while it is on. PyMySQL, asked by SQLAlchemy to
turn it off, believes the greeting and sends nothing. Every statement then commits by itself, and
``rollback()`` undoes nothing: seen on v22.0.1 with PyMySQL 1.2. As no message could commit with its
data that way, importing this library mends it for every pool of the process.
"""

from __future__ import annotations

from pymysql.connections import Connection
from sqlalchemy import event
from sqlalchemy.pool import Pool


@event.listens_for(Pool, "connect")
def _turn_autocommit_off(dbapi_connection: object, _record: object) -> None:
    if (
        isinstance(dbapi_connection, Connection)
        and dbapi_connection.autocommit_mode is False
        and "vitess" in dbapi_connection.get_server_info().lower()
    ):
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SET autocommit = 0")
