"""Settle leased messages: ack, fail, retry, extend, each in the caller's transaction.

The row's epoch is the fence. A message handed out at epoch e leaves e + 1 in its row; the next
delivery leaves e + 2, and whoever still holds the earlier lease may only ack.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, Union

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    UnaryExpression,
    Update,
    bindparam,
    select,
    update,
)
from sqlalchemy.orm import Mapper, Session, class_mapper, scoped_session
from sqlalchemy.sql.operators import custom_op

from . import clock
from .backoff import backoff
from .ddl import MYSQL, OPTIONS_KEY, queue_table
from .deadlocks import despite_deadlocks
from .enqueue import is_enqueued
from .errors import AlreadySettled, InvalidArgument, InvalidArgumentType, LeaseLost
from .events import Settlement
from .layouts import LAYOUTS, LayoutSpec
from .options import QueueOptions
from .transactions import Commit, on_commit

if TYPE_CHECKING:
    from .mixin import MessageQueueMixin

__all__ = ["DEAD", "Lease", "Transactional"]

DEAD = 2**63 - 1
"""``time_next`` of a message that failed for good: never due."""

CHUNK = 500
"""Rows to a statement. Vitess refuses an UPDATE of more than 10,000 rows."""

Transactional = Union[Session, "scoped_session[Session]", Connection]
"""Where a settlement is written: a Session or a Connection, inside its transaction."""

REASON_COLUMN = "fail_reason"
"""Where a model that has a column of this name keeps why a message failed."""

T = TypeVar("T")
M = TypeVar("M", bound="MessageQueueMixin")

Confirm = Callable[[Sequence[Any]], None]
"""Waits until the rows of messages show that they were delivered."""

log = logging.getLogger(__name__)


class Lease:
    """What a received message carries: this process may settle it.

    :param epoch: the message's epoch as it was handed out.
    :param stale: when the message is no longer to be given to a handler, on
        :func:`time.monotonic`: ``ack_wait`` after it was handed out.
    :param deadline: when the lease ends in the database, on the same clock: later by the backoff.
    :param shard: where the message came from, such as ``sharded:-80``; None when that isn't known.
    :param confirm: waits until the row shows the delivery of these messages. Vitess postpones a
        message after it has sent it, which would undo an earlier ``fail`` or ``retry``.
    """

    __slots__ = (
        "_commit",
        "_confirm",
        "_on_settling",
        "begun",
        "deadline",
        "epoch",
        "message_id",
        "settlement",
        "shard",
        "stale",
    )

    def __init__(
        self,
        epoch: int,
        stale: float,
        deadline: float,
        *,
        shard: str | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        self.epoch = epoch
        self.shard = shard
        self.message_id = 0
        self.begun = time.monotonic()
        self.settlement: Settlement | None = None
        self.stale = stale
        self.deadline = deadline
        self._confirm = confirm
        self._commit: Commit | None = None
        self._on_settling: Callable[[Sequence[Lease]], None] | None = None

    @property
    def fence(self) -> int:
        """The epoch that the row has as long as the lease holds."""
        return self.epoch + 1

    @property
    def expired(self) -> bool:
        """Whether the message may have been handed to somebody else."""
        return time.monotonic() >= self.deadline

    @property
    def is_stale(self) -> bool:
        """Whether it is too late to begin with the message."""
        return time.monotonic() >= self.stale

    @property
    def settling(self) -> bool:
        """Whether a settlement is being committed right now."""
        return self._commit is not None and not self._commit.is_over

    @property
    def settled(self) -> bool:
        """Whether a settlement was committed."""
        return self._commit is not None and self._commit.succeeded

    def on_settling(self, call: Callable[[Sequence[Lease]], None]) -> None:
        """Have ``call(leases)`` called when the commit of settlements begins."""
        self._on_settling = call

    @staticmethod
    def settle(settlement: Settlement, leases: Sequence[Lease], commit: Commit) -> None:
        """Note that settlements are being committed."""
        calls: dict[Callable[[Sequence[Lease]], None], list[Lease]] = defaultdict(list)
        for lease in leases:
            lease._commit = commit
            lease.settlement = settlement
            if lease._on_settling is not None:
                calls[lease._on_settling].append(lease)
        for call, of_one_subscriber in calls.items():
            call(of_one_subscriber)


def lease_of(message: MessageQueueMixin) -> Lease | None:
    """Return the lease of a message; None if it was not received but, say, queried."""
    return message.__dict__.get("_lease")


def attach(message: MessageQueueMixin, lease: Lease) -> None:
    """Make ``lease`` the message's lease."""
    lease.message_id = message.id
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
    connection = connection_of(model, session)
    values = {"time_acked": clock.now(), "time_next": None}
    for chunk in chunks_by_shard(batch):
        done = _execute(connection, _acking(table, one=len(chunk) == 1), chunk, values)
        if done != len(chunk):
            raise AlreadySettled(
                f"{len(chunk) - done} of {len(chunk)} messages of {table.name!r} were acked "
                f"before (or purged since): {_ids(chunk)}. Roll this transaction back"
            )
    _when_committed(connection, batch, partial(Lease.settle, "ack"))


def fail(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    reason: str | None,
) -> None:
    """Fail messages; see :meth:`.MessageQueueMixin.fail_all`."""
    if reason is not None and not isinstance(reason, str):
        raise InvalidArgumentType(f"reason={reason!r}: expected a str")
    values: dict[str, Any] = {"time_next": DEAD}
    column = queue_table(model).c.get(REASON_COLUMN)
    if reason is not None and column is not None:
        values[REASON_COLUMN] = reason[: getattr(column.type, "length", None)]
    batch = list(messages)
    _postpone(model, session, batch, lambda _table: values, partial(Lease.settle, "fail"))
    for message in batch:
        extra = {"queue": queue_table(model).name, "message_id": message.id, "epoch": message.epoch}
        log.warning("message %d failed: %s", message.id, reason or "no reason given", extra=extra)


def retry(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    delay: float | timedelta | None,
) -> None:
    """Retry messages; see :meth:`.MessageQueueMixin.retry_all`."""

    def later(table: Table) -> dict[str, Any]:
        if delay is None:
            options: QueueOptions = table.info[OPTIONS_KEY]
            wait: Any = backoff(table.c.epoch - 1, options)
        else:
            wait = clock.to_nanoseconds(seconds)
        return {"time_next": clock.database_now() + wait}

    seconds = 0 if delay is None else clock.to_seconds(delay, "delay")
    _postpone(model, session, messages, later, partial(Lease.settle, "retry"))


def extend(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    seconds: float | timedelta,
) -> None:
    """Extend leases; see :meth:`.MessageQueueMixin.extend`."""
    length = clock.to_seconds(seconds, "seconds", minimum=0.001)
    deadline = time.monotonic() + length

    def move_deadlines(leases: Sequence[Lease], _commit: Commit) -> None:
        for lease in leases:
            lease.stale = lease.deadline = deadline

    until = clock.database_now() + clock.to_nanoseconds(length)
    _postpone(model, session, messages, lambda _table: {"time_next": until}, move_deadlines)


def extend_free(
    model: type[M], engine: Engine, messages: Sequence[M], seconds: float | timedelta
) -> list[M]:
    """Extend leases by transactions of their own; see :meth:`.Subscriber.extend`."""
    lost: list[M] = []
    for chunk in chunks_by_shard(messages):
        try:
            despite_deadlocks(partial(_extend_free, model, engine, chunk, seconds))
        except LeaseLost:
            if len(chunk) == 1:
                lost += chunk
            else:
                for message in chunk:
                    lost += extend_free(model, engine, [message], seconds)
    return lost


def _extend_free(
    model: type[M], engine: Engine, messages: Sequence[M], seconds: float | timedelta
) -> None:
    table = queue_table(model)
    looking = select(table.c.id).where(*are_in_batch(table)).with_for_update(skip_locked=True)
    with engine.begin() as connection:
        free = set(connection.scalars(looking, batch_parameters(table, messages)))
        some = [message for message in messages if message.id in free]
        extend(model, connection, some, seconds)


def _postpone(
    model: type[MessageQueueMixin],
    session: Transactional,
    messages: Iterable[MessageQueueMixin],
    values: Callable[[Table], dict[str, Any]],
    committed: Callable[[Sequence[Lease], Commit], None],
) -> None:
    """Write values, ``time_next`` among them, to messages whose lease holds."""
    table, batch = queue_table(model), _checked(model, messages)
    if over := [m for m in batch if (lease := lease_of(m)) is not None and lease.settled]:
        raise LeaseLost(f"these messages of {table.name!r} are settled already: {_ids(over)}")
    _confirm(batch)
    connection = connection_of(model, session)
    by_fence: dict[tuple[int, bool], list[MessageQueueMixin]] = defaultdict(list)
    for message in batch:
        by_fence[fence_of(message), lease_of(message) is not None].append(message)
    for (fence, leased), held in by_fence.items():
        for chunk in chunks_by_shard(held):
            statement = _holding(table, one=len(chunk) == 1, leased=leased).values(values(table))
            done = _execute(connection, statement, chunk, {"_fence": fence})
            if done != len(chunk):
                raise LeaseLost(
                    f"the lease of {len(chunk) - done} of {len(chunk)} messages of {table.name!r} "
                    f"is over: each is settled, or due, or was delivered again: {_ids(chunk)}"
                )
    _when_committed(connection, batch, committed)


def _confirm(batch: Sequence[MessageQueueMixin]) -> None:
    waiting: dict[Confirm, list[MessageQueueMixin]] = defaultdict(list)
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
        .where(unindexed(table.c.time_acked).is_(None))
        .values(time_acked=bindparam("time_acked"), time_next=bindparam("time_next"))
    )


@lru_cache(maxsize=256)
def _holding(table: Table, *, one: bool, leased: bool) -> Update:
    """Return an UPDATE of the rows at epoch ``_fence``, and neither acked nor dead.

    Nor due, if they were leased: Vitess may have sent such a row again, and will postpone it.
    """
    due = unindexed(table.c.time_next)
    held = _update(table, one=one).where(
        unindexed(table.c.time_acked).is_(None),
        table.c.epoch == bindparam("_fence"),
        due < DEAD,
    )
    return held.where(due > clock.database_now()) if leased else held


def _update(table: Table, *, one: bool) -> Update:
    """Return an UPDATE of one row by its primary key, or of many by ``id``.

    With the columns that decide about the shard, or else vtgate would ask every shard.
    """
    if not one:
        return update_by_id(table).where(*are_in_batch(table)[1:])
    return update(table).where(
        *(table.c[name] == bindparam(f"_{name}") for name in _key_names(table))
    )


def _key_names(table: Table) -> tuple[str, ...]:
    """Return the columns that lead to a row and its shard."""
    names = (*_layout(table).primary_key, *_shard_by(table))
    return tuple(dict.fromkeys(names))


def _shard_by(table: Table) -> tuple[str, ...]:
    options: QueueOptions = table.info[OPTIONS_KEY]
    return options.shard_by or ()


def are_in_batch(table: Table) -> list[ColumnElement[bool]]:
    """Return what says that a row's message is in a batch, ``id`` first."""
    names = dict.fromkeys(("id", *_shard_by(table)))
    return [table.c[name].in_(bindparam(f"_{name}s", expanding=True)) for name in names]


def batch_parameters(table: Table, batch: Sequence[MessageQueueMixin]) -> dict[str, Any]:
    """Return the parameters of :func:`are_in_batch`."""
    attributes = _attributes(class_mapper(type(batch[0])), table)
    names = dict.fromkeys(("id", *_shard_by(table)))
    return {
        f"_{name}s": list(dict.fromkeys(getattr(message, attributes[name]) for message in batch))
        for name in names
    }


@lru_cache(maxsize=256)
def _attributes(mapper: Mapper[Any], table: Table) -> dict[str, str]:
    """Return under which attributes a model maps the columns that lead to a row."""
    return {
        name: mapper.get_property_by_column(table.c[name]).key
        for name in {"id", *_key_names(table)}
    }


def chunks_by_shard(batch: Sequence[M]) -> Iterator[list[M]]:
    """Cut a batch into lists that fit into one statement, each for one shard as far as is known."""
    by_shard: dict[str | None, list[M]] = defaultdict(list)
    for message in batch:
        lease = lease_of(message)
        by_shard[None if lease is None else lease.shard].append(message)
    for some in by_shard.values():
        yield from chunks(some)


def unindexed(column: ColumnElement[T]) -> ColumnElement[T]:
    """Return a column in a form that SQLite doesn't look rows up by, as it has no FORCE INDEX.

    Else it reads all unsettled messages for each batch of settlements.
    """
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def update_by_id(table: Table) -> Update:
    """Return an UPDATE of the rows whose ``id`` is in ``_ids``.

    Left to choose, MySQL scans a small table, or all of ``time_acked IS NULL``, and locks the
    gaps that producers insert into: they met deadlocks.
    """
    statement = update(table).where(table.c.id.in_(bindparam("_ids", expanding=True)))
    for dialect in MYSQL:
        statement = statement.with_hint(
            f"FORCE INDEX ({_layout(table).id_index})", dialect_name=dialect
        )
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
    table = queue_table(type(chunk[0]))
    if len(chunk) == 1:
        attributes = _attributes(class_mapper(type(chunk[0])), table)
        found = {f"_{name}": getattr(chunk[0], attributes[name]) for name in _key_names(table)}
    else:
        found = batch_parameters(table, chunk)
    return connection.execute(statement, {**parameters, **found}).rowcount


def _when_committed(
    connection: Connection,
    batch: Sequence[MessageQueueMixin],
    call: Callable[[Sequence[Lease], Commit], None],
) -> None:
    leases = [lease for message in batch if (lease := lease_of(message)) is not None]
    if leases:
        on_commit(connection, call, leases)


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


def connection_of(model: type[MessageQueueMixin], session: Transactional) -> Connection:
    """Return the connection of the caller's transaction."""
    if isinstance(session, Connection):
        return session
    if isinstance(session, (Session, scoped_session)):
        return session.connection(bind_arguments={"mapper": model})
    raise InvalidArgumentType(
        f"session={session!r}: expected a Session or a Connection; with an AsyncSession, "
        "await session.run_sync(message.ack)"
    )


def chunks(batch: Sequence[T]) -> Iterator[list[T]]:
    """Cut a batch into lists that fit into one statement."""
    rest = iter(batch)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _ids(messages: Sequence[MessageQueueMixin]) -> str:
    shown = ", ".join(str(message.id) for message in messages[:10])
    return shown if len(messages) <= 10 else f"{shown}, …"
