"""SQLAlchemy's dialect of ``vitess+grpc://user:password@host:15991/keyspace``.

MySQL's in all but the driver. In the URL's query: ``ssl=true`` or ``ssl_ca``, ``ssl_cert`` and
``ssl_key``, as with PyMySQL.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from sqlalchemy import URL, AsyncAdaptedQueuePool, Pool
from sqlalchemy.dialects.mysql.mysqldb import MySQLDialect_mysqldb
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.util import asbool

from ..vtgate import mend_describe
from .address import Address

__all__ = ["AsyncVitessGrpcDialect", "VitessGrpcDialect"]

mend_describe()

PORT = 15991
"""vtgate's usual one for gRPC."""

_QUERY = frozenset(("ssl", "ssl_ca", "ssl_cert", "ssl_key", "timeout"))

_LOST = 2013
"""MySQL's number of the error."""


class VitessGrpcDialect(MySQLDialect_mysqldb):
    """For threads."""

    driver = "grpc"
    default_paramstyle = "named"
    supports_statement_cache = True
    supports_server_side_cursors = False

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        try:
            from . import dbapi
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "vitess+grpc needs the extra 'grpc': pip install 'sqla-vitess-messages[grpc]'"
            ) from error
        return dbapi

    @classmethod
    def get_async_dialect_cls(cls, _url: URL) -> type[Dialect]:
        return AsyncVitessGrpcDialect

    def create_connect_args(self, url: URL) -> Any:  # type: ignore[override]
        query = {name: str(value) for name, value in url.query.items()}
        if unknown := query.keys() - _QUERY:
            raise ArgumentError(f"vitess+grpc: expected of {sorted(_QUERY)}, not {unknown}")
        address = Address(
            f"{url.host or '127.0.0.1'}:{url.port or PORT}",
            secure=asbool(query.get("ssl", "ssl_ca" in query)),
            ca=query.get("ssl_ca"),
            cert=query.get("ssl_cert"),
            key=query.get("ssl_key"),
            user=url.username,
            password=None if url.password is None else str(url.password),
        )
        timeout = float(query["timeout"]) if "timeout" in query else None
        return [address, url.database or ""], {"timeout": timeout, "is_async": self.is_async}

    def on_connect(self) -> None:  # type: ignore[override]
        """Do nothing: there is but one character set."""

    def is_disconnect(self, e: Any, _connection: Any, _cursor: Any) -> bool:
        return isinstance(e, self.loaded_dbapi.Error) and e.args[:1] == (_LOST,)


class AsyncVitessGrpcDialect(VitessGrpcDialect):
    """For asyncio."""

    is_async = True
    supports_statement_cache = True
    has_terminate = True

    @classmethod
    def get_pool_class(cls, _url: URL) -> type[Pool]:
        return AsyncAdaptedQueuePool

    def get_driver_connection(self, connection: Any) -> Any:
        return connection

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Leave a connection from outside a greenlet, where nothing can be waited for."""
        dbapi_connection.cancel_streams()
