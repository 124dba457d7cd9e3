"""The shards of a Vitess keyspace, and engines that talk to one of them alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, event, text
from sqlalchemy.exc import DBAPIError

from ..errors import InvalidArgument, InvalidArgumentType
from ..shown import shown
from ..vitess.vschema import is_sharded, keyspace_of
from .engines import copy_engine

__all__ = ["check_shards", "choose_shards", "find_shards", "shard_engine"]

_KEY_RANGE = re.compile(r"((?:[0-9a-f]{2})*)-((?:[0-9a-f]{2})*)")


def check_shards(wanted: Sequence[str] | None) -> None:
    """Check that these are names of shards or key ranges.

    :raises InvalidArgument: with what would be right.
    """
    if wanted is None:
        return
    if (
        isinstance(wanted, str)
        or not isinstance(wanted, Sequence)
        or not all(isinstance(name, str) for name in wanted)
    ):
        raise InvalidArgumentType(f"shards={shown(wanted)}: expected a list such as ['-80']")
    if not wanted or not all(wanted):
        raise InvalidArgument(f"shards={shown(wanted)}: name a shard or a key range such as '-80'")


def choose_shards(targets: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return those of a keyspace's shards that have a part in the wanted key ranges.

    After shards were merged, one of them may hold more than was wanted. It is taken whole: nothing
    is left out.

    :param targets: such as ``sharded:-80``, ``sharded:80-``.
    :param wanted: names or key ranges, such as ``-80``; None for all.
    :raises InvalidArgument: when there is no such shard.
    """
    if wanted is None:
        return list(targets)
    names = {target: target.partition(":")[2] for target in targets}
    chosen = [
        target for target, name in names.items() if any(_overlap(name, range_) for range_ in wanted)
    ]
    if not chosen:
        raise InvalidArgument(
            f"shards={shown(list(wanted))}: the keyspace has "
            f"{', '.join(names.values()) or 'no shards'}"
        )
    return chosen


def _overlap(one: str, other: str) -> bool:
    first, second = _KEY_RANGE.fullmatch(one), _KEY_RANGE.fullmatch(other)
    if one == other or first is None or second is None:
        return one == other
    starts_before_end = second[2] == "" or first[1] < second[2]
    return starts_before_end and (first[2] == "" or second[1] < first[2])


def find_shards(engine: Engine, table: Table) -> list[str] | None:
    """Return the targets of a table's keyspace if that is sharded, such as ``sharded:-80``.

    Only a sharded keyspace needs SHOW VITESS_SHARDS, which over gRPC may end in an error: vtgate
    answers from its cache and renews that in the background, until the call's end cancels it.

    :return: an empty list for an unsharded keyspace; None while it isn't known, as vtgate fails to
        look keyspaces up, or leaves out those for which it fails.
    """
    with engine.connect() as connection:
        if not is_sharded(connection, table):
            return []
        keyspace = keyspace_of(connection, table)
        try:
            names = connection.scalars(text("SHOW VITESS_SHARDS")).all()
        except DBAPIError as error:
            if "fetch error" in str(error.orig):
                return None
            raise
    everywhere = [name.split("/") for name in names]
    shards = [shard for of, shard in everywhere if of == keyspace]
    if not shards:
        return None
    return [f"{keyspace}:{shard}" for shard in shards] if len(shards) > 1 else []


def shard_engine(engine: Engine, target: str) -> Engine:
    """Return a copy of an engine whose connections talk to one shard.

    Each transaction begins with BEGIN. From Vitess 23 on, a ``SELECT … FOR UPDATE`` that comes
    first on such a connection locks nothing when autocommit is off and there was no BEGIN: of two
    subscribers, both were handed the same messages.

    :param target: such as ``sharded:-80``.
    """
    copied = copy_engine(engine)
    use = f"USE {engine.dialect.identifier_preparer.quote_identifier(target)}"

    def use_shard(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(use)
        cursor.close()

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(copied, "connect", use_shard)
    event.listen(copied, "begin", begin)
    return copied
