"""SQLAlchemy's dialect of ``vitess+grpc://user:password@host:15991/keyspace``.

It is the MySQL dialect with another driver. The URL's query may have ``timeout`` (seconds for each
statement) and, as with PyMySQL, ``ssl_ca``, ``ssl_cert`` and ``ssl_key``: each of them turns TLS
on, and so does ``ssl=true``. Without TLS a password goes over the network in the clear.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from sqlalchemy import URL, AsyncAdaptedQueuePool, Pool
from sqlalchemy.dialects.mysql.mysqldb import MySQLDialect_mysqldb
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.util import asbool

from ...shown import shown
from ..workarounds import translate_missing_table_errors
from .address import Address

__all__ = ["AsyncVitessGrpcDialect", "VitessGrpcDialect"]

translate_missing_table_errors()

PORT = 15991
"""vtgate's usual port for gRPC."""

_SSL_FILES = ("ssl_ca", "ssl_cert", "ssl_key")
_QUERY = frozenset(("ssl", *_SSL_FILES, "timeout"))

_LOST = 2013
"""MySQL's error number for a lost connection."""


class VitessGrpcDialect(MySQLDialect_mysqldb):
    """The dialect for threads."""

    driver = "grpc"
    default_paramstyle = "named"
    supports_statement_cache = True
    supports_server_side_cursors = False

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        from . import dbapi

        return dbapi

    @classmethod
    def get_async_dialect_cls(cls, _url: URL) -> type[Dialect]:
        return AsyncVitessGrpcDialect

    def create_connect_args(self, url: URL) -> Any:  # type: ignore[override]
        query = _query(url)
        files = {name: query[name] for name in _SSL_FILES if name in query}
        address = Address(
            f"{url.host or '127.0.0.1'}:{url.port or PORT}",
            secure=_flag("ssl", query["ssl"]) if "ssl" in query else bool(files),
            ca=files.get("ssl_ca"),
            cert=files.get("ssl_cert"),
            key=files.get("ssl_key"),
            user=url.username,
            password=None if url.password is None else str(url.password),
        )
        timeout = _seconds("timeout", query["timeout"]) if "timeout" in query else None
        return [address, url.database or ""], {"timeout": timeout, "is_async": self.is_async}

    def on_connect(self) -> None:  # type: ignore[override]
        """Do nothing: vtgate's gRPC protocol has one character set only."""

    def is_disconnect(self, e: Any, _connection: Any, _cursor: Any) -> bool:
        return isinstance(e, self.loaded_dbapi.Error) and e.args[:1] == (_LOST,)


class AsyncVitessGrpcDialect(VitessGrpcDialect):
    """The dialect for asyncio."""

    is_async = True
    supports_statement_cache = True
    has_terminate = True

    @classmethod
    def get_pool_class(cls, _url: URL) -> type[Pool]:
        return AsyncAdaptedQueuePool

    def get_driver_connection(self, connection: Any) -> Any:
        return connection

    def do_terminate(self, dbapi_connection: Any) -> None:
        """End a connection's streams. Called outside of a greenlet, where it must not wait."""
        dbapi_connection.cancel_streams()


def _query(url: URL) -> dict[str, str]:
    """Return the URL's query, with one value for each name."""
    if unknown := sorted(url.query.keys() - _QUERY):
        raise ArgumentError(f"vitess+grpc: unknown options {unknown}; expected {sorted(_QUERY)}")
    query: dict[str, str] = {}
    for name, value in url.query.items():
        if not isinstance(value, str):
            raise ArgumentError(f"vitess+grpc: {name} is given {len(value)} times; give it once")
        query[name] = value
    return query


def _flag(name: str, value: str) -> bool:
    try:
        return asbool(value)
    except ValueError:  # Its text repeats the value.
        text = f"vitess+grpc: {name}={shown(value)}: expected true or false"
        raise ArgumentError(text) from None


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:  # Its text repeats the value.
        raise ArgumentError(f"vitess+grpc: {name}={shown(value)}: expected seconds") from None
