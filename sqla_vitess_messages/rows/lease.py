"""The lease of a received message: this process may settle it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Any, NamedTuple

from sqlalchemy import Table
from sqlalchemy.orm import class_mapper
from sqlalchemy.orm.attributes import instance_state

from ..errors import InvalidArgument, InvalidArgumentType
from ..events import Outcome
from ..shown import shown
from ..table.options import queue_options
from .epochs import attempts
from .message import Message, is_enqueued, queue_table
from .queries import chunks, key_attributes, key_getter
from .transactions import Commit, call_guarded

__all__ = [
    "Confirm",
    "Lease",
    "Settling",
    "chunks_by_payload",
    "chunks_by_shard",
    "give_lease",
    "give_leases",
    "lease_of",
    "leases_of",
]

Confirm = Callable[[Sequence["Lease"]], None]
"""Waits until the rows of leases show that they were delivered."""


_LEASE = "sqla_vitess_messages.lease"
"""The key in ``InstanceState.info`` of a received message's lease."""


class Settling(NamedTuple):
    """Leases of one table's rows that a transaction settles."""

    outcome: Outcome
    leases: Sequence[Lease]
    table: Table


class Lease:
    """What identifies a message's row, and until when this process may settle it.

    :param key: the values of :func:`.queries.key_names`, ``id`` first.
    :param epoch: the message's epoch as it was handed out; see :mod:`.epochs`.
    :param usable_until: when the message is no longer to be given to a handler, on
        :func:`time.monotonic`: ``ack_wait`` after it was handed out.
    :param expires_at: when the lease ends in the database, on the same clock: later by the backoff.
    :param shard: where the message came from, such as ``sharded:-80``; None when unknown.
    :param confirm: waits until the rows show the delivery. Vitess postpones a message after it has
        sent it, which would undo an earlier ``fail`` or ``retry``.
    :param is_received: False for a message that was queried: it can be settled in the same way.
    """

    __slots__ = (
        "_commit",
        "_confirm",
        "_has_result",
        "_on_settling",
        "epoch",
        "expires_at",
        "is_received",
        "key",
        "leased_at",
        "outcome",
        "shard",
        "usable_until",
    )

    def __init__(
        self,
        key: tuple[Any, ...],
        epoch: int,
        usable_until: float,
        expires_at: float,
        *,
        shard: str | None = None,
        confirm: Confirm | None = None,
        is_received: bool = True,
    ) -> None:
        self.key = key
        self.epoch = epoch
        self.shard = shard
        self.is_received = is_received
        self.leased_at = time.monotonic()
        self.outcome: Outcome | None = None
        self.usable_until = usable_until
        self.expires_at = expires_at
        self._confirm = confirm
        self._commit: Commit | None = None
        self._has_result: Callable[[], bool] | None = None
        self._on_settling: Callable[[Sequence[Lease]], None] | None = None

    @property
    def message_id(self) -> int:
        """The message's ``id``."""
        found: int = self.key[0]
        return found

    @property
    def attempts(self) -> int:
        """How often the message was handed out before."""
        return attempts(self.epoch)

    @property
    def fence(self) -> int:
        """The epoch that the row has as long as the lease holds."""
        return self.epoch + 1

    @property
    def is_expired(self) -> bool:
        """Whether the message may have been handed to somebody else."""
        return time.monotonic() >= self.expires_at

    @property
    def is_usable(self) -> bool:
        """Whether there is time enough left to begin handling the message."""
        return time.monotonic() < self.usable_until

    @property
    def is_settling(self) -> bool:
        """Whether a settlement is being committed right now."""
        return self._commit is not None and not self._commit.is_over

    @property
    def is_settled(self) -> bool:
        """Whether a settlement was committed."""
        return self._commit is not None and self._commit.succeeded

    @property
    def is_promised(self) -> bool:
        """Whether a settlement in another transaction is under way: it is neither done nor failed.

        Ask for this first, and then for :attr:`is_settled`.
        """
        return self._has_result is not None and not self._has_result()

    def promise(self, has_result: Callable[[], bool]) -> None:
        """Note that a settlement in another transaction is under way.

        :param has_result: returns whether it is done, or has failed.
        """
        self._has_result = has_result

    def call_when_settling(self, call: Callable[[Sequence[Lease]], None]) -> None:
        """Have ``call(leases)`` called when the commit of settlements begins."""
        self._on_settling = call

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process can't wait for it, and for how long the lease lasts, the database knows.
        self.confirm_delivery([self])
        return Lease, (self.key, self.epoch, inf, inf)

    def __copy__(self) -> Lease:
        return self  # Whoever settles a copy of the message settles the message.

    def __deepcopy__(self, _memo: object) -> Lease:
        return self

    @staticmethod
    def settle(settling: Settling, commit: Commit) -> None:
        """Note that settlements are being committed."""
        calls: dict[Callable[[Sequence[Lease]], None], list[Lease]] = defaultdict(list)
        for lease in settling.leases:
            lease._commit = commit
            lease.outcome = settling.outcome
            if lease._on_settling is not None:
                calls[lease._on_settling].append(lease)
        for call, of_one_subscriber in calls.items():
            call_guarded(call, of_one_subscriber)

    @staticmethod
    def confirm_delivery(leases: Iterable[Lease]) -> None:
        """Wait until the rows of leases show that they were delivered."""
        waiting: dict[Confirm, list[Lease]] = defaultdict(list)
        for lease in leases:
            if lease._confirm is not None:
                waiting[lease._confirm].append(lease)
        for confirm, unconfirmed in waiting.items():
            confirm(unconfirmed)
            for lease in unconfirmed:
                lease._confirm = None


def lease_of(message: Message) -> Lease | None:
    """Return the lease of a message; None if it was not received but, say, queried."""
    lease: Lease | None = instance_state(message).info.get(_LEASE)
    return lease


def leases_of(model: type[Message], messages: Iterable[Message]) -> list[Lease]:
    """Return the leases of messages, each once; of those that were queried, what stands for one.

    :raises InvalidArgumentType: for what is no message of this queue.
    :raises InvalidArgument: for a message without a row.
    """
    leases: dict[object, Lease] = {}
    for message in messages:
        if not isinstance(message, model):
            raise InvalidArgumentType(f"messages: {shown(message)} is not a {model.__name__}")
        lease = lease_of(message)
        leases[lease or id(message)] = lease or _of_queried(message)
    return list(leases.values())


def _of_queried(message: Message) -> Lease:
    if not is_enqueued(message):
        raise InvalidArgument(
            f"messages: {shown(message)} was never enqueued by a session; add it to one, or "
            "receive it"
        )
    model = type(message)
    attributes = key_attributes(class_mapper(model), queue_table(model))
    key = tuple(getattr(message, name) for name in attributes)
    return Lease(key, (message.epoch or 0) - 1, inf, inf, is_received=False)


def give_lease(message: Message, lease: Lease) -> None:
    """Make ``lease`` the message's lease. No session, and no change of the instance, loses it.

    It isn't among the instance's own attributes, of which others make JSON or another instance.
    """
    instance_state(message).info[_LEASE] = lease


def give_leases(
    messages: Sequence[Message],
    *,
    usable_until: float,
    expires_at: Callable[[int], float],
    shard: str | None = None,
    confirm: Confirm | None = None,
) -> None:
    """Attach leases to messages of one queue, which hold every column of their key.

    :param usable_until: see :class:`Lease`.
    :param expires_at: returns it for an epoch; called once for each epoch.
    """
    if not messages:
        return
    model = type(messages[0])
    get_key = key_getter(class_mapper(model), queue_table(model))
    ends: dict[int, float] = {}
    for message in messages:
        epoch = message.epoch
        end = ends.get(epoch)
        if end is None:
            end = ends[epoch] = expires_at(epoch)
        key = get_key(message.__dict__)
        lease = Lease(key, epoch, usable_until, end, shard=shard, confirm=confirm)
        give_lease(message, lease)


def chunks_by_payload(table: Table, leases: Iterable[Lease]) -> Iterator[list[Lease]]:
    """Yield leases as :func:`chunks_by_shard`, each list of payloads with the same revision."""
    if queue_options(table).unique_by is None:
        yield from chunks_by_shard(leases)
        return
    by_revision: dict[int, list[Lease]] = defaultdict(list)
    for lease in leases:
        by_revision[lease.key[-1]].append(lease)
    for of_one_revision in by_revision.values():
        yield from chunks_by_shard(of_one_revision)


def chunks_by_shard(leases: Iterable[Lease]) -> Iterator[list[Lease]]:
    """Yield leases in lists that fit into one statement, each for one shard as far as is known."""
    by_shard: dict[str | None, list[Lease]] = defaultdict(list)
    for lease in leases:
        by_shard[lease.shard].append(lease)
    for of_one_shard in by_shard.values():
        yield from chunks(of_one_shard)
