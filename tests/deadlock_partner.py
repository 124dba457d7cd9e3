"""The other transaction of a deadlock."""

from __future__ import annotations

import threading
import time
from typing import Any

from sqlalchemy import Engine, insert, update

FIRST, SECOND, *OTHERS = range(1, 40)


class DeadlockPartner:
    """A transaction that locks a table's second row, then its first, and survives the deadlock.

    :param table: with the columns ``id`` and ``body``; its rows are inserted here.
    """

    def __init__(self, engine: Engine, table: Any) -> None:
        self._engine = engine
        self._table = table
        self._has_second = threading.Event()
        self._first_requested = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> DeadlockPartner:
        with self._engine.begin() as connection:
            rows = [{"id": number, "body": ""} for number in (FIRST, SECOND, *OTHERS)]
            connection.execute(insert(self._table), rows)
        self._thread.start()
        assert self._has_second.wait(20)
        return self

    def __exit__(self, *_error: object) -> None:
        self._first_requested.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def lock(self, number: int) -> Any:
        """Return a statement that locks one of the rows."""
        return update(self._table).where(self._table.id == number).values(body="locked")

    def request_first(self) -> None:
        """Make the partner wait for the first row, which the caller has locked."""
        self._first_requested.set()
        time.sleep(0.3)

    def _run(self) -> None:
        with self._engine.begin() as connection:
            # MySQL ends a deadlock by rolling back the transaction that has changed fewer rows.
            for number in (*OTHERS, SECOND):
                connection.execute(self.lock(number))
            self._has_second.set()
            assert self._first_requested.wait(20)
            connection.execute(self.lock(FIRST))
