"""Which server a dialect or a connection speaks to.

Every name of a database or driver that makes a difference is here, and nowhere else.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, text
from sqlalchemy.engine import Dialect

__all__ = [
    "DATABASES",
    "MYSQL",
    "is_mysql",
    "is_pymysql",
    "is_sqlite",
    "is_vitess",
    "is_vitess_grpc",
    "vitess_major",
]

MYSQL = ("mysql", "mariadb")
"""The names of SQLAlchemy's dialects for MySQL, MariaDB and Vitess."""

DATABASES = (*MYSQL, "sqlite")
"""The names of the dialects that queues are supported on."""


def is_mysql(dialect: Dialect) -> bool:
    """Return whether a dialect is that of MySQL, MariaDB or Vitess."""
    return dialect.name in MYSQL


def is_sqlite(dialect: Dialect) -> bool:
    """Return whether a dialect is SQLite's."""
    return dialect.name == "sqlite"


def is_pymysql(dialect: Dialect) -> bool:
    """Return whether a dialect uses the driver PyMySQL."""
    return dialect.driver == "pymysql"


def is_vitess_grpc(dialect: Dialect) -> bool:
    """Return whether a dialect speaks vtgate's gRPC protocol, as ``vitess+grpc://`` URLs do."""
    return dialect.driver == "grpc"


def is_vitess(connection: Connection | None) -> bool:
    """Return whether the server behind a connection is a vtgate.

    :param connection: None, or a mock connection, where SQL is only written to a script.
    """
    if not isinstance(connection, Connection) or not is_mysql(connection.dialect):
        return False
    return "vitess" in str(connection.scalar(text("SELECT @@version"))).lower()


def vitess_major(connection: Connection) -> int:
    """Return the major version of a vtgate; 0 for the oldest versions, which don't report it."""
    comment = str(connection.scalar(text("SELECT @@version_comment")))
    found = re.search(r"Version: (\d+)", comment)
    return int(found[1]) if found else 0
