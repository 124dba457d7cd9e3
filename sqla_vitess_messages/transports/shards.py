"""The shards of a Vitess keyspace, and engines that talk to one of them alone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event, text

__all__ = ["find_shards", "shard_engine"]


def find_shards(engine: Engine) -> list[str] | None:
    """Return the targets of a sharded keyspace, such as ``sharded:-80``.

    :return: an empty list for an unsharded keyspace, and where the URL names a shard itself; None
        while it isn't known, as vtgate leaves out the keyspaces that it fails to look up.
    """
    keyspace = engine.url.database or ""
    if not keyspace or ":" in keyspace or "@" in keyspace:
        return []
    with engine.connect() as connection:
        everywhere = [name.split("/") for name in connection.scalars(text("SHOW VITESS_SHARDS"))]
    shards = [shard for of, shard in everywhere if of == keyspace]
    if not shards:
        return None
    return [f"{keyspace}:{shard}" for shard in shards] if len(shards) > 1 else []


def shard_engine(engine: Engine, target: str) -> Engine:
    """Return a copy of an engine whose connections talk to one shard."""
    copied = Engine(
        engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=engine.hide_parameters
    )
    use = f"USE {engine.dialect.identifier_preparer.quote_identifier(target)}"

    def use_shard(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(use)
        cursor.close()

    event.listen(copied, "connect", use_shard)
    return copied
