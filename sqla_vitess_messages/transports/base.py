"""The interface of every transport, and what the transports have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Engine, Select, select
from sqlalchemy.orm import lazyload, undefer

from ..events import Event
from ..rows import states
from ..rows.backoff import longest_backoff
from ..rows.lease import Confirm, Lease, chunks_by_shard, give_leases, lease_of
from ..rows.message import Message, queue_table
from ..rows.queries import batch_parameters
from ..rows.transient import retry_transaction
from ..table.options import queue_options

__all__ = ["BaseTransport", "Receiver", "Transport"]

M = TypeVar("M", bound=Message)
M_contra = TypeVar("M_contra", bound=Message, contravariant=True)


class Receiver(Protocol[M_contra]):
    """The subscriber's side of a transport."""

    def deliver(self, messages: Sequence[M_contra]) -> None:
        """Accept messages that were leased. Called from any thread, or in the event loop."""
        ...

    def emit(self, event: Event) -> None:
        """Report an event of the transport."""
        ...

    def poll_now(self) -> None:
        """Make the subscriber poll without waiting for the end of a pause, from any thread."""
        ...


class Transport(Protocol[M_contra]):
    """Brings leased messages to one subscriber, which calls it from one thread or one task."""

    pause: float
    """Seconds to wait before the next poll. Set it to 0 when there may be messages."""

    def poll(self, limit: int) -> None:
        """Deliver the messages that are due. A stream goes on to deliver by itself.

        :param limit: how many the subscriber has room for. A stream brings more where the server
            sends more; the surplus is to be released.
        :raises sqlalchemy.exc.DBAPIError: when the connection is lost; call again to reconnect.
        """
        ...

    def interrupt(self) -> None:
        """End a poll that is under way. From any thread; :meth:`stop` follows."""
        ...

    def stop(self) -> None:
        """Leave the queue until the next :meth:`poll`. After that nothing is delivered."""
        ...

    def release(self, messages: Sequence[M_contra]) -> None:
        """Make messages that no handler has seen ready for others at once."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class BaseTransport(Generic[M]):
    """What all transports do in the same way."""

    def __init__(self, model: type[M], engine: Engine) -> None:
        self._model = model
        self._engine = engine
        self._table = queue_table(model)
        self._options = queue_options(self._table)

    def _select(self) -> Select[Any]:
        """Select instances that hold every column, and load nothing else."""
        return select(self._model).options(undefer("*"), lazyload("*"))

    def _give_leases(
        self,
        messages: Sequence[M],
        earliest: float,
        latest: float,
        *,
        shard: str | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        """Attach leases to messages that have come.

        :param earliest: when the leases may have begun, on :func:`time.monotonic`.
        :param latest: when they have begun at the latest.
        """
        wait = self._options.ack_wait
        give_leases(
            messages,
            usable_until=earliest + wait,
            expires_at=lambda epoch: latest + wait + longest_backoff(epoch, self._options),
            shard=shard,
            confirm=confirm,
        )

    def release(self, messages: Sequence[M]) -> None:
        """Make messages that no handler has seen ready for others at once."""
        self._release_leases([lease for m in messages if (lease := lease_of(m)) is not None])

    def _release_leases(self, leases: Sequence[Lease]) -> None:
        by_fence: dict[int, list[Lease]] = {}
        for lease in leases:
            by_fence.setdefault(lease.fence, []).append(lease)
        retry_transaction(partial(self._release_in_transaction, by_fence))

    def _release_in_transaction(self, by_fence: dict[int, list[Lease]]) -> None:
        statement = states.release(self._table)
        with self._engine.begin() as connection:
            for fence, leases in by_fence.items():
                for chunk in chunks_by_shard(leases):
                    keys = [lease.key for lease in chunk]
                    parameters = batch_parameters(self._table, keys)
                    connection.execute(statement, parameters | {"_fence": fence})

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()
