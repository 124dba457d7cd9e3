"""A cursor of PyMySQL for ``stream * from t``, whose result has no end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pymysql.cursors import SSCursor
from sqlalchemy import Connection

__all__ = ["StreamCursor"]


class StreamCursor(SSCursor):  # type: ignore[misc]  # PyMySQL has no types.
    """Reads one stream row by row, until :meth:`leave`.

    SQLAlchemy closes a cursor when it can't make an instance of a row. This one stays open, and
    goes on when it is executed again.
    """

    _result: Any

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.row: tuple[bytes | None, ...] | None = None
        """The last row, not decoded. None if there is none, or it could not be read."""
        self._decoding: list[tuple[str | None, Callable[[Any], Any] | None]] = []

    @classmethod
    def of(cls, connection: Connection) -> StreamCursor:
        """Return the cursor that a connection uses from now on, whatever it executes."""
        driver: Any = connection.connection.dbapi_connection
        cursor = cls(driver)
        driver.cursorclass = lambda _driver: cursor
        return cursor

    def execute(self, query: Any, args: Any = None) -> Any:
        if self._result is None:
            super().execute(query, args)
            result: Any = self._result
            # PyMySQL would forget a row that it can't decode.
            self._decoding = result.converters
            result.converters = [(None, None)] * len(self._decoding)
        return self.rowcount

    def fetchone(self) -> Any:
        """Read a row, and return it without decoding it."""
        self.row = None
        self.row = self.read_next()
        return self.row

    def fetchmany(self, _size: int | None = None) -> Any:
        """Read a row, and return it alone: to wait for more would keep it back."""
        row = self.fetchone()
        if row is None:
            return []
        values = []
        for value, (encoding, convert) in zip(row, self._decoding, strict=True):
            if value is not None and encoding is not None:
                value = value.decode(encoding)  # noqa: PLW2901
            values.append(value if value is None or convert is None else convert(value))
        return [tuple(values)]

    def integers(self, *names: str) -> tuple[int | None, ...]:
        """Return some values of the last row, which are integers or None.

        :param names: of their columns. One that isn't in the result counts as None.
        """
        assert self.row is not None
        columns = [column[0] for column in self.description or ()]
        values = dict(zip(columns, self.row, strict=True))
        found = [values.get(name) for name in names]
        return tuple(None if value is None else int(value) for value in found)

    def close(self) -> None:
        """Do nothing. PyMySQL would read the rest of the result."""

    def leave(self) -> None:
        """Read nothing more. The connection can't be used for anything else then."""
        if self._result is not None:
            self._result.unbuffered_active = False
        self._result = None

    __del__ = leave
