"""Settle leased messages: ack, fail, retry, extend, each in the caller's transaction.

The row's epoch is the fence. A message handed out at epoch e leaves e + 1 in its row; the next
delivery leaves e + 2, and whoever still holds the earlier lease may only ack.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, Union

from sqlalchemy import Connection, Table, Update, bindparam, update
from sqlalchemy.orm import Session, scoped_session

from . import clock
from .backoff import backoff
from .ddl import MYSQL, OPTIONS_KEY, queue_table
from .enqueue import is_enqueued
from .errors import AlreadySettled, InvalidArgument, InvalidArgumentType, LeaseLost
from .layouts import LAYOUTS, LayoutSpec
from .options import QueueOptions
from .transactions import after_commit

if TYPE_CHECKING:
    from .mixin import MessageQueueMixin

__all__ = ["DEAD", "Lease", "Transactional"]

DEAD = 2**63 - 1
"""``time_next`` of a message that failed for good: never due."""

CHUNK = 500
"""Rows to a statement. Vitess refuses an UPDATE of more than 10,000 rows."""

Transactional = Union[Session, "scoped_session[Session]", Connection]
"""Where a settlement is written: a Session or a Connection, inside its transaction."""

T = TypeVar("T")


class Lease:
    """What a received message carries: this process may settle it.

    :param epoch: the message's epoch as it was handed out.
    :param deadline: when the lease ends, on :func:`time.monotonic`.
    :param confirm: waits until the row shows the delivery of these messages. Vitess postpones a
        message after it has sent it, which would undo an earlier ``fail`` or ``retry``.
    """

    __slots__ = ("_confirm", "_on_settled", "deadline", "fence", "settled")

    def __init__(
        self,
        epoch: int,
        deadline: float,
        confirm: Callable[[Sequence[Any]], None] | None = None,
    ) -> None:
        self.fence = epoch + 1
        self.deadline = deadline
        self.settled = False
        self._confirm = confirm
        self._on_settled: Callable[[Lease], None] | None = None

    @property
    def expired(self) -> bool:
        """Whether the message may have been handed to somebody else."""
        return time.monotonic() >= self.deadline

    def on_settled(self, call: Callable[[Lease], None]) -> None:
        """Have ``call(lease)`` called once, when the settlement commits."""
        self._on_settled = call

    def settle(self) -> None:
        """Note that the settlement was committed."""
        self.settled = True
        if self._on_settled is not None:
            call, self._on_settled = self._on_settled, None
            call(self)


def lease_of(message: MessageQueueMixin) -> Lease | None:
    """Return the lease of a message; None if it was not received but, say, queried."""
    return message.__dict__.get("_lease")


def attach(message: MessageQueueMixin, lease: Lease) -> None:
    """Make ``lease`` the message's lease."""
    message.__dict__["_lease"] = lease


def fence_of(message: MessageQueueMixin) -> int:
    """Return the epoch that the row has as long as the message's lease holds."""
    lease = lease_of(message)
    return message.epoch if lease is None else lease.fence


def ack(
    model: type[MessageQueueMixin], session: Transactional, messages: Iterable[MessageQueueMixin]
) -> None:
    """Ack messages; see :meth:`.MessageQueueMixin.ack_all`."""
    table, batch = queue_table(model), _checked(model, messages)
    connection = _connection(model, session)
    values = {"time_acked": clock.now(), "time_next": None}
    for chunk in _chunks(batch):
        done = _execute(connection, _acking(table, one=len(chunk) == 1), chunk, values)
        if done != len(chunk):
            raise AlreadySettled(
                f"{len(chunk) - done} of {len(chunk)} messages of {table.name!r} were acked "
                f"before (or purged since): {_ids(chunk)}. Roll this transaction back"
            )
    _when_committed(connection, batch, Lease.settle)


def fail(
    model: type[MessageQueueMixin], session: Transactional, messages: Iterable[MessageQueueMixin]
) -> None:
    """Fail messages; see :meth:`.MessageQueueMixin.fail_all`."""
    _postpone(model, session, messages, lambda _table: DEAD, Lease.settle)


def retry(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    delay: float | timedelta | None,
) -> None:
    """Retry messages; see :meth:`.MessageQueueMixin.retry_all`."""

    def time_next(table: Table) -> Any:
        if delay is None:
            options: QueueOptions = table.info[OPTIONS_KEY]
            return clock.now() + backoff(table.c.epoch - 1, options)
        return clock.now() + clock.to_nanoseconds(seconds)

    seconds = 0 if delay is None else clock.to_seconds(delay, "delay")
    _postpone(model, session, messages, time_next, Lease.settle)


def extend(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    seconds: float | timedelta,
) -> None:
    """Extend leases; see :meth:`.MessageQueueMixin.extend`."""
    length = clock.to_seconds(seconds, "seconds", minimum=0.001)
    deadline = time.monotonic() + length

    def move_deadline(lease: Lease) -> None:
        lease.deadline = deadline

    until = clock.now() + clock.to_nanoseconds(length)
    _postpone(model, session, messages, lambda _table: until, move_deadline)


def _postpone(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    time_next: Callable[[Table], Any],
    committed: Callable[[Lease], None],
) -> None:
    """Set ``time_next`` of messages whose lease holds."""
    table, batch = queue_table(model), _checked(model, messages)
    if over := [m for m in batch if (lease := lease_of(m)) is not None and lease.settled]:
        raise LeaseLost(f"these messages of {table.name!r} are settled already: {_ids(over)}")
    _confirm(batch)
    connection = _connection(model, session)
    by_fence: dict[int, list[MessageQueueMixin]] = defaultdict(list)
    for message in batch:
        by_fence[fence_of(message)].append(message)
    for fence, held in by_fence.items():
        for chunk in _chunks(held):
            statement = _holding(table, one=len(chunk) == 1).values(time_next=time_next(table))
            done = _execute(connection, statement, chunk, {"_fence": fence})
            if done != len(chunk):
                raise LeaseLost(
                    f"the lease of {len(chunk) - done} of {len(chunk)} messages of {table.name!r} "
                    f"has moved on: each is settled, or was delivered again: {_ids(chunk)}"
                )
    _when_committed(connection, batch, committed)


def _confirm(batch: Sequence[MessageQueueMixin]) -> None:
    waiting: dict[Callable[[Sequence[Any]], None], list[MessageQueueMixin]] = defaultdict(list)
    for message in batch:
        lease = lease_of(message)
        if lease is not None and lease._confirm is not None:
            waiting[lease._confirm].append(message)
    for confirm, messages in waiting.items():
        confirm(messages)
        for message in messages:
            lease = lease_of(message)
            assert lease is not None
            lease._confirm = None


@lru_cache(maxsize=256)
def _acking(table: Table, *, one: bool) -> Update:
    return (
        _update(table, one=one)
        .where(table.c.time_acked.is_(None))
        .values(time_acked=bindparam("time_acked"), time_next=bindparam("time_next"))
    )


@lru_cache(maxsize=256)
def _holding(table: Table, *, one: bool) -> Update:
    """Return an UPDATE of the rows leased at epoch ``_fence``, and neither acked nor dead."""
    return _update(table, one=one).where(
        table.c.time_acked.is_(None),
        table.c.epoch == bindparam("_fence"),
        table.c.time_next < DEAD,
    )


def _update(table: Table, *, one: bool) -> Update:
    """Return an UPDATE of one row by its primary key, or of many by ``id``.

    Left to choose, MySQL scans a small table, or all of ``time_acked IS NULL``, and locks the
    gaps that producers insert into: they met deadlocks.
    """
    layout = _layout(table)
    if one:
        return update(table).where(
            *(table.c[name] == bindparam(f"_{name}") for name in layout.primary_key)
        )
    statement = update(table).where(table.c.id.in_(bindparam("_ids", expanding=True)))
    for dialect in MYSQL:
        statement = statement.with_hint(f"FORCE INDEX ({layout.id_index})", dialect_name=dialect)
    return statement


def _layout(table: Table) -> LayoutSpec:
    options: QueueOptions = table.info[OPTIONS_KEY]
    return LAYOUTS[options.layout]


def _execute(
    connection: Connection,
    statement: Update,
    chunk: Sequence[MessageQueueMixin],
    parameters: dict[str, Any],
) -> int:
    if len(chunk) == 1:
        for name in _layout(queue_table(type(chunk[0]))).primary_key:
            parameters[f"_{name}"] = getattr(chunk[0], name)
    else:
        parameters["_ids"] = [message.id for message in chunk]
    return connection.execute(statement, parameters).rowcount


def _when_committed(
    connection: Connection,
    batch: Sequence[MessageQueueMixin],
    call: Callable[[Lease], None],
) -> None:
    for message in batch:
        lease = lease_of(message)
        if lease is not None:
            after_commit(connection, call, lease)


def _checked(
    model: type[MessageQueueMixin], messages: Iterable[MessageQueueMixin]
) -> list[MessageQueueMixin]:
    """Return the messages, each once."""
    batch = list({id(message): message for message in messages}.values())
    for message in batch:
        if not isinstance(message, model):
            raise InvalidArgumentType(f"messages: {message!r} is not a {model.__name__}")
        if not is_enqueued(message):
            raise InvalidArgument(
                f"messages: {message!r} was never enqueued; add it to a session instead"
            )
    return batch


def _connection(model: type[MessageQueueMixin], session: Transactional) -> Connection:
    if isinstance(session, Connection):
        return session
    if isinstance(session, (Session, scoped_session)):
        return session.connection(bind_arguments={"mapper": model})
    raise InvalidArgumentType(
        f"session={session!r}: expected a Session or a Connection; with an AsyncSession, "
        "await session.run_sync(message.ack)"
    )


def _chunks(batch: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(batch)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _ids(messages: Sequence[MessageQueueMixin]) -> str:
    shown = ", ".join(str(message.id) for message in messages[:10])
    return shown if len(messages) <= 10 else f"{shown}, …"
