"""The options of a queue: those that Vitess reads from the table's comment, and the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, Self, get_args

from sqlalchemy import Column, Table

from ..clock import to_seconds
from ..errors import InvalidArgument, InvalidArgumentType, InvalidQueue
from ..shown import shown

__all__ = [
    "FORBIDDEN_IN_NAMES",
    "MARK",
    "OPTIONS_KEY",
    "CommentOptions",
    "Layout",
    "QueueOptions",
    "column_named",
    "is_queue",
    "queue_options",
    "to_number",
]

Layout = Literal["portable", "classic", "minimal"]
"""The name of a table layout; see :mod:`sqla_vitess_messages.table.layouts`."""

OPTIONS_KEY = "sqla_vitess_messages"
"""The key of a queue's options in ``Table.info``."""

MARK = "vitess_message"
"""How the comment of a message table begins."""

MIN_SECONDS = 0.001
"""The shortest duration accepted. Vitess accepts 0 silently, and then never polls."""

FORBIDDEN_IN_NAMES = ",=|"
"""Characters that separate the parts of the comment, and so can't stand in a column's name."""

_DURATIONS = ("ack_wait", "purge_after", "poller_interval", "min_backoff", "max_backoff")
_COUNTS = ("batch_size", "cache_size")
_REQUIRED = ("ack_wait", "purge_after", "batch_size", "cache_size", "poller_interval")
_OPTIONAL = ("min_backoff", "max_backoff")


def is_queue(table: Table) -> bool:
    """Return whether a table belongs to a model with MessageQueueMixin."""
    return OPTIONS_KEY in table.info


def queue_options(table: Table) -> QueueOptions:
    """Return the options of a queue.

    :param table: the table of a model with MessageQueueMixin.
    """
    options: QueueOptions = table.info[OPTIONS_KEY]
    return options


def column_named(table: Table, name: str) -> Column[Any] | None:
    """Return the column that the database knows by a name. ``table.c`` knows it by its key.

    :return: None if there is none.
    """
    return next((column for column in table.columns if column.name == name), None)


@dataclass(frozen=True, init=False)
class CommentOptions:
    """The options that a table comment contains, which is where Vitess reads them.

    The parameters are those of :class:`QueueOptions`.

    Source of the rules: ``go/vt/vttablet/tabletserver/schema/load_table.go`` in Vitess.
    """

    ack_wait: float
    purge_after: float
    batch_size: int
    cache_size: int
    poller_interval: float
    min_backoff: float | None
    max_backoff: float | None
    message_cols: tuple[str, ...] | None

    def __init__(
        self,
        *,
        ack_wait: float | timedelta = 30,
        purge_after: float | timedelta = 86_400,
        batch_size: int = 10,
        cache_size: int = 10_000,
        poller_interval: float | timedelta = 30,
        min_backoff: float | timedelta | None = None,
        max_backoff: float | timedelta | None = None,
        message_cols: Sequence[str] | None = None,
    ) -> None:
        self._set(
            ack_wait=_duration("ack_wait", ack_wait),
            purge_after=_duration("purge_after", purge_after),
            batch_size=_count("batch_size", batch_size),
            cache_size=_count("cache_size", cache_size),
            poller_interval=_duration("poller_interval", poller_interval),
            min_backoff=None if min_backoff is None else _duration("min_backoff", min_backoff),
            max_backoff=None if max_backoff is None else _duration("max_backoff", max_backoff),
            message_cols=None if message_cols is None else _columns(message_cols),
        )
        if cache_size < batch_size:
            raise InvalidArgument(
                f"cache_size={cache_size}: must be at least batch_size={batch_size}"
            )
        if self.max_backoff is not None and self.max_backoff < self.first_backoff:
            raise InvalidArgument(
                f"max_backoff={self.max_backoff}: must be at least min_backoff, which is "
                f"{self.first_backoff} (ack_wait unless given)"
            )

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values for some options."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{**values, **changes})

    @property
    def first_backoff(self) -> float:
        """What is added to ``ack_wait`` at the first redelivery, in seconds."""
        return self.ack_wait if self.min_backoff is None else self.min_backoff

    def to_comment(self) -> str:
        """Return the table comment that contains these options."""
        parts = [MARK]
        for name in (*_REQUIRED, *_OPTIONAL):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"vt_{name}={to_number(value)}")
        if self.message_cols is not None:
            parts.append(f"vt_message_cols={'|'.join(self.message_cols)}")
        return ",".join(parts)

    @classmethod
    def from_comment(cls, comment: str) -> Self:
        """Return the options that a table comment contains; others have their defaults.

        :param comment: the comment of a message table. The order of its options doesn't matter.
        :raises InvalidQueue: when Vitess could not work with the comment, or would ignore
            a part of it.
        """
        given = _parse_comment(comment)
        try:
            return cls(
                **{name: float(text) for name, text in given.items() if name in _DURATIONS},  # type: ignore[arg-type]
                **{name: int(text) for name, text in given.items() if name in _COUNTS},
                message_cols=given["message_cols"].split("|") if "message_cols" in given else None,
            )
        except ValueError as error:
            raise InvalidQueue(f"comment {comment!r}: {error}") from error


def _parse_comment(comment: str) -> dict[str, str]:
    mark, *parts = comment.split(",")
    if mark != MARK:
        raise InvalidQueue(f"comment {comment!r}: must begin with '{MARK},'")
    given: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        name = key.removeprefix("vt_")
        known = name in (*_DURATIONS, *_COUNTS, "message_cols") and key == f"vt_{name}"
        if not (known and equals and value) or name in given or value != value.strip():
            raise InvalidQueue(
                f"comment {comment!r}: {part!r} is not one 'vt_<option>=<value>' of "
                f"{', '.join(f'vt_{n}' for n in (*_REQUIRED, *_OPTIONAL, 'message_cols'))}, "
                "each at most once and without spaces"
            )
        given[name] = value
    if missing := [f"vt_{name}" for name in _REQUIRED if name not in given]:
        raise InvalidQueue(f"comment {comment!r}: lacks {', '.join(missing)}")
    return given


@dataclass(frozen=True, init=False)
class QueueOptions(CommentOptions):
    """The options of one queue, checked when made. Set as ``__queue__`` on the model.

    Durations are seconds (int or float) or a :class:`~datetime.timedelta`, from 1 ms up.

    :param ack_wait: how long a consumer has for a message. One that isn't settled comes back after
        this and the backoff.
    :param purge_after: how long after its ack a message is deleted.
    :param batch_size: how many messages Vitess sends at a time.
    :param cache_size: how many waiting messages the tablet keeps in memory; at least
        ``batch_size``.
    :param poller_interval: how often the tablet polls for messages that became due.
    :param min_backoff: what is added to ``ack_wait`` at the first redelivery, and doubled at each
        further one. Default: ``ack_wait``, as in Vitess.
    :param max_backoff: the most that is added. Default: no limit.
    :param message_cols: the columns streamed, ``id`` first. Default: all columns that an
        instance needs.
    :param layout: ``"portable"``, ``"classic"`` or ``"minimal"``.
    :param shard_by: in a sharded keyspace of Vitess, the column (or columns) that determines a
        message's shard: the same as for the data that it commits with. ``create_all`` and
        Alembic's migrations write it to the vschema. Other databases ignore it.
    :param vindex: how the shard follows from these columns: a vindex type that needs no
        parameters, such as ``"hash"`` or ``"xxhash"``, or the name of a vindex that the keyspace
        has. Required with ``shard_by``.
    :param unique_by: the column (or columns) of a key, of which the queue has at most one unsettled
        message at a time; see :meth:`.EnqueueableQueue.enqueue`. With ``shard_by``, its columns
        are among them.
    :param pausable: whether ``Model.pause`` can pause the queue. That needs a small table, which
        ``create_all`` and Alembic's autogenerate create, and each subscriber reads from it twice a
        second.
    :param ordered_by: the column (or columns) with the key of a message. Those with the same key
        are handed out one at a time, in the order in which they were enqueued; those with different
        keys in parallel. It must include the columns of ``shard_by``. Such a queue can't be
        streamed, only pulled.
    :param halt_on_dead: whether a dead message stops the later ones of its key, until it is
        requeued, cancelled or purged. Only with ``ordered_by``.
    :raises InvalidArgument: when a value is out of range. Vitess stops reloading the schema of the
        whole tablet over some such values, and misbehaves silently over others.
    :raises InvalidArgumentType: when a value is of another type.
    """

    layout: Layout
    shard_by: tuple[str, ...] | None
    vindex: str | None
    unique_by: tuple[str, ...] | None
    pausable: bool
    ordered_by: tuple[str, ...] | None
    halt_on_dead: bool

    def __init__(
        self,
        *,
        ack_wait: float | timedelta = 30,
        purge_after: float | timedelta = 86_400,
        batch_size: int = 10,
        cache_size: int = 10_000,
        poller_interval: float | timedelta = 30,
        min_backoff: float | timedelta | None = None,
        max_backoff: float | timedelta | None = None,
        message_cols: Sequence[str] | None = None,
        layout: Layout = "portable",
        shard_by: str | Sequence[str] | None = None,
        vindex: str | None = None,
        unique_by: str | Sequence[str] | None = None,
        pausable: bool = False,
        ordered_by: str | Sequence[str] | None = None,
        halt_on_dead: bool = False,
    ) -> None:
        super().__init__(
            ack_wait=ack_wait,
            purge_after=purge_after,
            batch_size=batch_size,
            cache_size=cache_size,
            poller_interval=poller_interval,
            min_backoff=min_backoff,
            max_backoff=max_backoff,
            message_cols=message_cols,
        )
        self._set(
            layout=layout,
            shard_by=None if shard_by is None else _names("shard_by", shard_by),
            vindex=vindex,
            unique_by=None if unique_by is None else _names("unique_by", unique_by),
            pausable=pausable,
            ordered_by=None if ordered_by is None else _names("ordered_by", ordered_by),
            halt_on_dead=halt_on_dead,
        )
        if layout not in get_args(Layout):
            raise InvalidArgument(f"layout={shown(layout)}: expected one of {get_args(Layout)}")
        self._check_shards()
        if not isinstance(pausable, bool):
            raise InvalidArgumentType(f"pausable={shown(pausable)}: expected True or False")
        self._check_key()
        self._check_order()

    def _check_shards(self) -> None:
        if (self.shard_by is None) != (self.vindex is None):
            raise InvalidArgument(
                f"shard_by={shown(self.shard_by)} and vindex={shown(self.vindex)}: give both, "
                "the same as for the data that the messages commit with, or neither"
            )
        if self.vindex is not None and not (isinstance(self.vindex, str) and self.vindex):
            raise InvalidArgumentType(
                f"vindex={shown(self.vindex)}: expected a name such as 'hash'"
            )

    def _check_key(self) -> None:
        if self.unique_by is not None and (missing := {*(self.shard_by or ())} - {*self.unique_by}):
            raise InvalidArgument(
                f"unique_by={shown(self.unique_by)}: lacks {', '.join(sorted(missing))} of "
                "shard_by; a shard knows only its own messages, so those of one key must be in one "
                "shard"
            )

    def _check_order(self) -> None:
        if not isinstance(self.halt_on_dead, bool):
            raise InvalidArgumentType(f"halt_on_dead={shown(self.halt_on_dead)}: expected a bool")
        if self.ordered_by is None:
            if self.halt_on_dead:
                raise InvalidArgument(
                    "halt_on_dead=True: only a queue with ordered_by has an order to halt"
                )
        elif missing := {*(self.shard_by or ())} - {*self.ordered_by}:
            raise InvalidArgument(
                f"ordered_by={shown(self.ordered_by)}: lacks {', '.join(sorted(missing))} of "
                "shard_by; a shard knows only its own messages, so those of one key must be in one "
                "shard"
            )
        elif self.unique_by is not None and (missing := {*self.ordered_by} - {*self.unique_by}):
            raise InvalidArgument(
                f"unique_by={shown(self.unique_by)}: lacks {', '.join(sorted(missing))} of "
                "ordered_by; a message that is replaced must stay in its place"
            )


def _duration(name: str, value: float | timedelta) -> float:
    return to_seconds(value, name, minimum=MIN_SECONDS)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentType(f"{name}={shown(value)}: expected an int")
    if not 1 <= value <= 1_000_000:
        raise InvalidArgument(f"{name}={shown(value)}: expected from 1 to 1000000")
    return value


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not _are_names(names):
        raise InvalidArgumentType(
            f"message_cols={shown(names)}: expected a sequence of column names"
        )
    if not names or names[0] != "id":
        raise InvalidArgument(f"message_cols={shown(names)}: must begin with 'id'")
    if len({name.lower() for name in names}) < len(names):
        raise InvalidArgument(f"message_cols={shown(names)}: names a column twice")
    for name in names:
        if not name or any(mark in name for mark in FORBIDDEN_IN_NAMES):
            raise InvalidArgument(
                f"message_cols={shown(names)}: {shown(name)} can't be written in a table comment, "
                f"where {' '.join(FORBIDDEN_IN_NAMES)} separate the parts"
            )
    return tuple(names)


def _names(argument: str, names: str | Sequence[str]) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else names
    if not _are_names(given) or not given or not all(given):
        raise InvalidArgumentType(
            f"{argument}={shown(names)}: expected one column's name, or several"
        )
    if len(set(given)) < len(given):
        raise InvalidArgument(f"{argument}={shown(names)}: names a column twice")
    return tuple(given)


def _are_names(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(name, str) for name in value)


def to_number(value: float) -> str:
    """Return a number as Go's ParseFloat and Atoi read it, without an exponent."""
    return format(Decimal(repr(value)), "f")
