"""Transactions on one shard of a Vitess keyspace begin with BEGIN.

From Vitess 23 on, a ``SELECT … FOR UPDATE`` that comes first on a connection to one shard locks
nothing if autocommit is off and there was no BEGIN. Vitess 22 locks the row in either case, so the
statements that the driver sends are checked, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymysql.connections
import pytest
from sqlalchemy import Engine, Select, create_engine, select
from sqlalchemy.orm import DeclarativeBase

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.transports.shards import find_shards, shard_engine
from sqla_vitess_messages.vitess.grpc import dbapi
from tests.backends import enqueue, make_queue_class
from tests.servers import server_url


@pytest.fixture(params=["pymysql", "grpc"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine of the sharded keyspace, over each of vtgate's protocols."""
    url = server_url("sharded")
    if request.param == "grpc":
        url = f"vitess+grpc://user@{server_url('sharded grpc')}/sharded"
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def queue(engine: Engine) -> Iterator[type[Any]]:
    """A queue with messages in every shard."""
    base = type("Base", (DeclarativeBase,), {})
    model = make_queue_class(QueueOptions(shard_by="tenant", vindex="hash"), base=base)
    base.metadata.create_all(engine)
    enqueue(engine, *(model(tenant=number) for number in range(40)))
    yield model
    base.metadata.drop_all(engine)


@pytest.fixture
def shard(engine: Engine, queue: type[Any]) -> Iterator[Engine]:
    """An engine for one of the shards."""
    assert "sharded:-80" in (find_shards(engine, queue.__table__) or ())
    shard = shard_engine(engine, "sharded:-80")
    yield shard
    shard.dispose()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that both drivers send, including those that SQLAlchemy doesn't see."""
    statements: list[str] = []
    execute_command = pymysql.connections.Connection._execute_command
    execute = dbapi.Connection.execute

    def record_command(connection: Any, command: int, sql: str | bytes) -> None:
        statements.append(sql if isinstance(sql, str) else sql.decode(errors="replace"))
        execute_command(connection, command, sql)

    def record(connection: dbapi.Connection, sql: str, parameters: Any) -> Any:
        statements.append(sql)
        return execute(connection, sql, parameters)

    monkeypatch.setattr(pymysql.connections.Connection, "_execute_command", record_command)
    monkeypatch.setattr(dbapi.Connection, "execute", record)
    return statements


def lock_one(queue: type[Any]) -> Select[tuple[int]]:
    """Return a statement that locks a message which no other transaction has locked."""
    return select(queue.id).order_by(queue.id).limit(1).with_for_update(skip_locked=True)


def test_a_row_locked_by_the_first_statement_on_a_shard_is_skipped_by_others(
    queue: type[Any], shard: Engine
) -> None:
    with shard.connect() as one, shard.connect() as other:
        locked = one.scalar(lock_one(queue))
        assert locked is not None
        assert other.scalar(lock_one(queue)) not in (None, locked)
        other.rollback()
        one.rollback()
        assert other.scalar(lock_one(queue)) == locked


def test_every_transaction_on_a_shard_begins_with_begin(
    queue: type[Any], shard: Engine, sent: list[str]
) -> None:
    with shard.connect() as connection:
        for end in (connection.commit, connection.rollback, connection.commit):
            connection.scalar(lock_one(queue))
            assert [statement[:6] for statement in sent[-2:]] == ["BEGIN", "SELECT"]
            end()
            assert sent[-1].upper() in ("COMMIT", "ROLLBACK")
