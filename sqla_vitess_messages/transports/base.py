"""What every transport does, and what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import pymysql
from sqlalchemy import Engine, Select, bindparam, event, select
from sqlalchemy.orm import lazyload, undefer

from .. import clock
from ..ddl import queue_table
from ..leases import fence_of, update_by_id
from ..mixin import MessageQueueMixin

__all__ = ["Leasing", "Transport"]

M = TypeVar("M", bound=MessageQueueMixin)


class Transport(Protocol[M]):
    """Brings leased messages to one subscriber, whose one thread calls it.

    Only :meth:`interrupt` is called from other threads.
    """

    def receive(self, limit: int) -> Iterator[M]:
        """Yield messages as they come, and end after a second or so even if none came.

        :param limit: how many the subscriber has room for. A stream yields more where the server
            sends more; what isn't wanted is to be given back.
        :raises sqlalchemy.exc.DBAPIError: when the connection is lost; call again to reconnect.
        """
        ...

    def interrupt(self) -> None:
        """Let what waits come back early, because :meth:`stop` follows."""
        ...

    def stop(self) -> list[M]:
        """Leave the queue until the next :meth:`receive`, and return what came meanwhile."""
        ...

    def give_back(self, messages: Sequence[M]) -> None:
        """Let messages that nobody has seen go to others at once."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class Leasing(Generic[M]):
    """What all transports do in the same way."""

    def __init__(self, model: type[M], engine: Engine) -> None:
        self._model = model
        self._engine = engine
        self._table = queue_table(model)
        columns = self._table.c
        # As if they had never been handed out: so the epoch counts what a handler has seen.
        self._giving_back = (
            update_by_id(self._table)
            .where(
                columns.epoch == bindparam("_fence"),
                columns.time_acked.is_(None),
            )
            .values(time_next=clock.database_now(), epoch=columns.epoch - 1)
        )

    def _select(self) -> Select[Any]:
        """Select instances that hold every column, and load nothing else."""
        return select(self._model).options(undefer("*"), lazyload("*"))

    def give_back(self, messages: Sequence[M]) -> None:
        """Let messages that nobody has seen go to others at once."""
        ids: dict[int, list[int]] = {}
        for message in messages:
            ids.setdefault(fence_of(message), []).append(message.id)
        with self._engine.begin() as connection:
            for fence, some in ids.items():
                for start in range(0, len(some), 500):
                    connection.execute(
                        self._giving_back,
                        {"_ids": some[start : start + 500], "_fence": fence},
                    )

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def bound_reads(engine: Engine, seconds: float) -> None:
    """Let a read on one of the engine's PyMySQL connections fail after so many seconds.

    PyMySQL takes this as an argument of ``connect()`` only, and a copied engine has its own.
    """

    def set_timeout(dbapi_connection: Any, _record: object) -> None:
        if isinstance(dbapi_connection, pymysql.Connection):
            dbapi_connection._read_timeout = seconds

    event.listen(engine, "connect", set_timeout)
