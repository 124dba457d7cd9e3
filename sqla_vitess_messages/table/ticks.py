"""The table that remembers the last tick of each periodic message.

It is part of the metadata of all queues once a :class:`.Periodic` exists, so that ``create_all``
and Alembic make it, but not for those who need none.
"""

from __future__ import annotations

from weakref import WeakSet

from sqlalchemy import BLANK_SCHEMA, BigInteger, Column, MetaData, String, Table

from ..errors import InvalidQueue

__all__ = [
    "MAX_NAME",
    "TICKS",
    "TICKS_VINDEX",
    "add_ticks_table",
    "has_ticks_table",
    "use_ticks_table",
]

MAX_NAME = 255
"""Characters that the name of a periodic message may have."""

_KEY = "sqla_vitess_messages.ticks"
"""The key in ``Table.info`` that marks the table."""

TICKS_VINDEX: tuple[tuple[str, ...], str] = (("id",), "hash")
"""The columns that determine a row's shard in a sharded keyspace, and how. Schedulers refuse such a
keyspace, but the table hinders nobody there."""


def _make_table(metadata: MetaData) -> Table:
    return Table(
        "message_queue_ticks",
        metadata,
        # A hash of the name, because databases differ in which names they think are equal.
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", String(MAX_NAME), nullable=False),
        Column("last_tick", BigInteger, nullable=False),
        schema=BLANK_SCHEMA,
        info={_KEY: True},
    )


TICKS = _make_table(MetaData())
"""The table, for statements."""


def has_ticks_table(metadata: MetaData) -> bool:
    """Return whether periodic messages are used beside the queues of a metadata."""
    return TICKS.name in metadata.tables


class _Registry:
    """The metadata of queues, and whether they need the table."""

    def __init__(self) -> None:
        self.metadata: WeakSet[MetaData] = WeakSet()
        self.is_used = False


_registry = _Registry()


def use_ticks_table() -> None:
    """Add the table to the metadata of all queues, those defined later included."""
    _registry.is_used = True
    for metadata in _registry.metadata:
        _add_to(metadata)


def add_ticks_table(metadata: MetaData) -> None:
    """Add the table to the metadata of a queue, once periodic messages are used."""
    _registry.metadata.add(metadata)
    if _registry.is_used:
        _add_to(metadata)


def _add_to(metadata: MetaData) -> None:
    """Add the table.

    :raises InvalidQueue: when there is another one of that name.
    """
    existing = metadata.tables.get(TICKS.name)
    if existing is None:
        _make_table(metadata)
    elif _KEY not in existing.info:
        raise InvalidQueue(
            f"table {TICKS.name!r}: the name belongs to the table that remembers the last tick of "
            "each periodic message; choose another one"
        )
