"""What every transport does, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Engine, Select, bindparam, event, select
from sqlalchemy.orm import lazyload, undefer

from .. import clock
from ..backoff import longest_backoff
from ..ddl import OPTIONS_KEY, queue_table
from ..deadlocks import despite_deadlocks
from ..leases import (
    Confirm,
    Lease,
    are_in_batch,
    attach,
    batch_parameters,
    chunks_by_shard,
    fence_of,
    unindexed,
    update_by_id,
)
from ..mixin import MessageQueueMixin
from ..options import QueueOptions

__all__ = ["Deliver", "Leasing", "Transport", "bound_reads", "copy_engine"]

M = TypeVar("M", bound=MessageQueueMixin)
M_contra = TypeVar("M_contra", bound=MessageQueueMixin, contravariant=True)

GRPC = "grpc"
"""The driver in a URL such as ``vitess+grpc://host:15991/keyspace``."""


Deliver = Callable[[list[M]], None]
"""Takes messages that were leased to a subscriber. Called from any thread, or in the event loop."""


class Transport(Protocol[M_contra]):
    """Brings leased messages to one subscriber, which calls it from one thread or one task.

    It is made with two functions of the subscriber's: one to deliver messages by, and one to wake
    it by, when it pays to look before the pause is over.
    """

    pause: float
    """Seconds to wait before the next look. Set it to 0 when there is something."""

    def look(self, limit: int) -> None:
        """Deliver messages, those that there are. A stream goes on to deliver by itself.

        :param limit: how many the subscriber has room for. A stream brings more where the server
            sends more; what isn't wanted is to be given back.
        :raises sqlalchemy.exc.DBAPIError: when the connection is lost; call again to reconnect.
        """
        ...

    def interrupt(self) -> None:
        """Let a look that is under way come to an end. From any thread; :meth:`stop` follows."""
        ...

    def stop(self) -> None:
        """Leave the queue until the next :meth:`look`. After that nothing is delivered."""
        ...

    def give_back(self, messages: Sequence[M_contra]) -> None:
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
        self._options: QueueOptions = self._table.info[OPTIONS_KEY]
        columns = self._table.c
        # As if they had never been handed out: so the epoch counts what a handler has seen.
        self._giving_back = (
            update_by_id(self._table)
            .where(
                *are_in_batch(self._table)[1:],
                columns.epoch == bindparam("_fence"),
                unindexed(columns.time_acked).is_(None),
            )
            .values(time_next=clock.database_now(), epoch=columns.epoch - 1)
        )

    def _select(self) -> Select[Any]:
        """Select instances that hold every column, and load nothing else."""
        return select(self._model).options(undefer("*"), lazyload("*"))

    def _lease(
        self,
        messages: Iterable[M],
        earliest: float,
        latest: float,
        *,
        shard: str | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        """Attach leases to messages that have come.

        :param earliest: when they may have begun, on :func:`time.monotonic`.
        :param latest: when they have begun at the latest.
        """
        wait = self._options.ack_wait
        ends: dict[int, float] = {}
        for message in messages:
            epoch = message.epoch
            if epoch not in ends:
                ends[epoch] = latest + wait + longest_backoff(epoch, self._options)
            attach(
                message, Lease(epoch, earliest + wait, ends[epoch], shard=shard, confirm=confirm)
            )

    def give_back(self, messages: Sequence[M]) -> None:
        """Let messages that nobody has seen go to others at once."""
        by_fence: dict[int, list[M]] = {}
        for message in messages:
            by_fence.setdefault(fence_of(message), []).append(message)
        despite_deadlocks(partial(self._give_back, by_fence))

    def _give_back(self, by_fence: Mapping[int, Sequence[M]]) -> None:
        with self._engine.begin() as connection:
            for fence, some in by_fence.items():
                for chunk in chunks_by_shard(some):
                    parameters = batch_parameters(self._table, chunk)
                    connection.execute(self._giving_back, {**parameters, "_fence": fence})

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def copy_engine(engine: Engine) -> Engine:
    """Return an engine with the same settings, and no connection yet."""
    return Engine(
        engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=engine.hide_parameters
    )


def bound_reads(engine: Engine, seconds: float) -> None:
    """Let a read on one of the engine's connections fail after so many seconds.

    PyMySQL takes this as an argument of ``connect()`` only, and a copied engine has its own.
    """

    def set_timeout(dbapi_connection: Any, _record: object) -> None:
        if engine.dialect.driver == "pymysql":
            dbapi_connection._read_timeout = seconds
        elif engine.dialect.driver == GRPC:
            dbapi_connection.timeout = seconds

    event.listen(engine, "connect", set_timeout)
