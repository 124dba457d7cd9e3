"""Somebody to meet in a deadlock."""

from __future__ import annotations

import threading
import time
from typing import Any

from sqlalchemy import Engine, insert, update

FIRST, SECOND, *OTHERS = range(1, 40)


class Opponent:
    """Locks the second row and then the first of a table, and survives the deadlock.

    :param table: with columns ``id`` and ``body``; it gets the rows.
    """

    def __init__(self, engine: Engine, table: Any) -> None:
        self._engine = engine
        self._table = table
        self._has_second = threading.Event()
        self._go_on = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Opponent:
        with self._engine.begin() as connection:
            rows = [{"id": number, "body": ""} for number in (FIRST, SECOND, *OTHERS)]
            connection.execute(insert(self._table), rows)
        self._thread.start()
        assert self._has_second.wait(20)
        return self

    def __exit__(self, *_error: object) -> None:
        self._go_on.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def lock(self, number: int) -> Any:
        """Return a statement that locks one of the rows."""
        return update(self._table).where(self._table.id == number).values(body="locked")

    def want_first(self) -> None:
        """Wait for the first row, which somebody else has locked by now."""
        self._go_on.set()
        time.sleep(0.3)

    def _run(self) -> None:
        with self._engine.begin() as connection:
            # The one who wrote less is chosen to end the deadlock.
            for number in (*OTHERS, SECOND):
                connection.execute(self.lock(number))
            self._has_second.set()
            assert self._go_on.wait(20)
            connection.execute(self.lock(FIRST))
