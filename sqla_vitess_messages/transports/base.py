"""The interface of every transport, and what the transports have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Select, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import lazyload, undefer
from sqlalchemy.orm.attributes import set_committed_value

from ..events import Event
from ..logs import get_logger
from ..rows import states
from ..rows.backoff import longest_backoff
from ..rows.epochs import attempts
from ..rows.lease import Confirm, Lease, chunks_by_payload, give_leases, lease_of
from ..rows.loading import Portions, load_separately
from ..rows.message import Message, queue_table
from ..rows.own_session import OwnSession
from ..rows.queries import batch_parameters, by_index, id_condition, key_columns
from ..rows.reasons import describe_error
from ..rows.replaced import resume_replaced
from ..rows.transient import retry_transaction
from ..table.layouts import LAYOUTS
from ..table.options import queue_options

__all__ = ["BaseTransport", "Batch", "LeasedRow", "Receiver", "Transport", "Unloadable"]

M = TypeVar("M", bound=Message)
M_contra = TypeVar("M_contra", bound=Message, contravariant=True)

log = get_logger(__name__)


class LeasedRow(NamedTuple):
    """What identifies a row that was leased, with the values that the lease has changed.

    :param time_next: None where a stream doesn't bring it.
    """

    id: int
    epoch: int
    time_next: int | None


class Unloadable(NamedTuple):
    """The lease of a message that can't be loaded, and the error."""

    lease: Lease
    error: Exception


class Batch(NamedTuple, Generic[M]):
    """Messages that were leased together."""

    messages: list[M]
    unloadable: list[Unloadable]

    @property
    def size(self) -> int:
        """How many messages were leased."""
        return len(self.messages) + len(self.unloadable)


class Receiver(Protocol[M_contra]):
    """The subscriber's side of a transport."""

    def deliver(self, messages: Sequence[M_contra], unloadable: Sequence[Unloadable] = ()) -> None:
        """Accept messages that were leased. Called from any thread, or in the event loop.

        :param unloadable: those that can't be loaded, to be retried or failed.
        """
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

    def note_settled(self, leases: Sequence[Lease]) -> None:
        """Have the next poll find messages that can follow, now that these are settled."""
        ...

    def release(self, messages: Sequence[M_contra]) -> None:
        """Make messages that no handler has seen ready for others at once."""
        ...

    def disconnect(self) -> None:
        """Close the connections that are not in use. The next poll opens new ones."""
        ...

    def engines(self) -> Sequence[Engine]:
        """Return every engine that has connections."""
        ...

    def release_leases(self, leases: Sequence[Lease]) -> None:
        """Make the messages of leases ready for others at once."""
        ...

    def close(self) -> None:
        """Close every connection, for good."""
        ...


class BaseTransport(Generic[M]):
    """What all transports do in the same way.

    :param vitess: whether the server is a vtgate.
    """

    def __init__(self, model: type[M], engine: Engine, *, vitess: bool) -> None:
        self._model = model
        self._engine = engine
        self._vitess = vitess
        self._portions = Portions()
        self._table = queue_table(model)
        self._options = queue_options(self._table)
        is_this_row, columns = id_condition(self._table), self._table.c
        self._loading = by_index(
            self._select().where(is_this_row, states.is_unsettled(self._table)),
            self._table,
            LAYOUTS[self._options.layout].id_index,
        )
        self._finding = select(columns.id).where(is_this_row)
        self._finding_none = select(columns.id).where(columns.id == 0)
        self._reading_key = select(*key_columns(self._table)).where(is_this_row)

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
        give_leases(
            messages,
            usable_until=earliest + self._options.ack_wait,
            expires_at=partial(self._expires_at, latest),
            shard=shard,
            confirm=confirm,
        )

    def _expires_at(self, latest: float, epoch: int) -> float:
        return latest + self._options.ack_wait + longest_backoff(attempts(epoch), self._options)

    def _load(
        self,
        rows: Sequence[LeasedRow],
        earliest: float,
        latest: float,
        *,
        shard: str | None = None,
        confirm: Confirm | None = None,
    ) -> Batch[M]:
        """Load messages that were leased already, each apart from those that can't be loaded.

        The parameters are those of :meth:`_give_leases`. Rows that are acked or gone are left out.

        :raises sqlalchemy.exc.DBAPIError: when it is the database that fails.
        """
        messages, failed = load_separately(self._load_rows, rows, self._portions)
        self._give_leases(messages, earliest, latest, shard=shard, confirm=confirm)
        unloadable: list[Unloadable] = []
        for row, error in failed:
            if (key := self._find_key(row.id)) is not None:
                lease = Lease(
                    key,
                    row.epoch,
                    earliest + self._options.ack_wait,
                    self._expires_at(latest, row.epoch),
                    shard=shard,
                    confirm=confirm,
                )
                unloadable.append(Unloadable(lease, error))
        return Batch(messages, unloadable)

    def _load_rows(self, rows: Sequence[LeasedRow]) -> list[M]:
        with self._engine.connect() as connection:
            self._begin_on_tablet(connection)
            ids = {"_ids": [row.id for row in rows]}
            found = {row[0].id: row[0] for row in self._read(connection, self._loading, ids)}
        loaded = [(row, found[row.id]) for row in rows if row.id in found]
        for row, message in loaded:
            set_committed_value(message, "epoch", row.epoch)
            if row.time_next is not None:
                set_committed_value(message, "time_next", row.time_next)
        return [message for _row, message in loaded]

    def _begin_on_tablet(self, connection: Connection) -> None:
        """Begin a transaction by a statement whose result can't be too large.

        Else, with the result of its first statement, vtgate also loses the transaction that this
        has begun on the tablet. Nobody can end it then: its rows stay locked for 30 seconds.
        """
        if self._vitess:
            connection.execute(self._finding_none)

    def _read(
        self, connection: Connection, statement: Select[Any], parameters: dict[str, Any]
    ) -> list[Any]:
        """Execute a statement, and return its rows, with instances that belong to no session."""
        session = OwnSession(connection)
        try:
            result = session.execute(statement, parameters)
        except Exception as error:
            if not isinstance(error, DBAPIError):
                # The driver can't decode a value, and has left the rest of the result unread.
                connection.invalidate()
            raise
        rows = list(result)
        session.expunge_all()
        return rows

    def _find_key(self, message_id: int) -> tuple[Any, ...] | None:
        """Return the key of a row that can't be loaded; None if it is gone, or has no valid key.

        :raises sqlalchemy.exc.DBAPIError: when it is the database that fails, and not the row.
        """
        parameters = {"_ids": [message_id]}
        with self._engine.connect() as connection:
            if connection.scalar(self._finding, parameters) is None:
                return None
            try:
                return tuple(connection.execute(self._reading_key, parameters).one())
            except Exception as error:  # noqa: BLE001  # Of a column that determines the shard.
                connection.invalidate()
                log.warning(
                    "message %d can't be loaded, nor settled; it comes back after its lease: %s",
                    message_id, describe_error(error),
                    extra={"queue": self._table.name, "message_id": message_id},
                )  # fmt: skip
                return None

    def note_settled(self, leases: Sequence[Lease]) -> None:
        """Only an ordered queue has messages that follow others."""

    def release(self, messages: Sequence[M]) -> None:
        """Make messages that no handler has seen ready for others at once."""
        self.release_leases([lease for m in messages if (lease := lease_of(m)) is not None])

    def release_leases(self, leases: Sequence[Lease]) -> None:
        """Make the messages of leases ready for others at once."""
        by_fence: dict[int, list[Lease]] = {}
        for lease in leases:
            by_fence.setdefault(lease.fence, []).append(lease)
        retry_transaction(partial(self._release_in_transaction, by_fence))

    def _release_in_transaction(self, by_fence: dict[int, list[Lease]]) -> None:
        statement = states.release(self._table)
        with self._engine.begin() as connection:
            for fence, leases in by_fence.items():
                for chunk in chunks_by_payload(self._table, leases):
                    keys = [lease.key for lease in chunk]
                    parameters = batch_parameters(self._table, keys)
                    done = connection.execute(statement, parameters | {"_fence": fence}).rowcount
                    resume_replaced(connection, self._table, chunk, done)

    def engines(self) -> list[Engine]:
        """Return every engine that has connections."""
        return [self._engine]

    def disconnect(self) -> None:
        """Close the connections that are not in use."""
        for engine in self.engines():
            engine.dispose()

    def close(self) -> None:
        """Close every connection, for good."""
        self.disconnect()
