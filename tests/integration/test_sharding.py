"""Queues in a sharded keyspace: every statement is routed to the shard of its message."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    String,
    Table,
    create_engine,
    event,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidQueue,
    MessageQueueError,
    Periodic,
    Pull,
    QueueOptions,
    Scheduler,
    Subscriber,
    Topic,
    random_id,
)
from sqla_vitess_messages.cli.check import check_queues
from sqla_vitess_messages.rows.lease import lease_of
from sqla_vitess_messages.table.ticks import TICKS
from sqla_vitess_messages.transports.shards import choose_shards
from sqla_vitess_messages.vitess.vschema import (
    AddSequence,
    AddVindex,
    CreateVindex,
    DropSequence,
    DropVindex,
    RemoveVindex,
    alter_vschema,
    reserve_ids,
    vindexes_of,
    wait_until_routable,
)
from tests.backends import enqueue, eventually, make_queue_class
from tests.servers import server_url


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine(server_url("sharded"))
    yield engine
    engine.dispose()


@pytest.fixture
def base() -> type[DeclarativeBase]:
    class Base(DeclarativeBase):
        pass

    return Base


@pytest.fixture
def queue(engine: Engine, base: type[DeclarativeBase]) -> Iterator[type[Any]]:
    """A queue that is sharded by user."""
    options = QueueOptions(ack_wait=5, poller_interval=0.2, shard_by="user_id", vindex="hash")
    attributes = {"user_id": mapped_column(BigInteger, nullable=False)}
    model = make_queue_class(options, base=base, attributes=attributes)

    class User(base):  # type: ignore[valid-type,misc]
        __tablename__ = f"user_{secrets.token_hex(6)}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
        name: Mapped[str] = mapped_column(String(50), default="")

    model.User = User
    base.metadata.create_all(engine)
    with engine.connect() as connection:
        alter_vschema(connection, AddVindex(User.__tablename__, ["id"], "hash"))
        wait_until_routable(connection, User.__table__)
    yield model
    base.metadata.drop_all(engine)


def explain(connection: Connection, statement: str, parameters: Any) -> str:
    """Return vtgate's plan of a statement."""
    cursor = connection.connection.cursor()
    cursor.execute(f"vexplain plan {statement}", parameters)
    [[plan]] = cursor.fetchall()
    cursor.close()
    return str(plan)


def plans_of(engine: Engine, work: Callable[[Session], object]) -> list[str]:
    """Return the variants of vtgate's plans for the statements that ``work`` sends."""
    sent: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith("SHOW"):
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    try:
        with Session(engine) as session, session.begin():
            work(session)
    finally:
        event.remove(engine, "before_cursor_execute", record)
    with engine.connect() as connection:
        plans = [explain(connection, *statement) for statement in sent]
    return [found for plan in plans for found in re.findall(r'"Variant": "(\w+)"', plan)]


def received(engine: Engine, queue: type[Any], count: int) -> list[Any]:
    """Enqueue messages of different users, and receive them."""
    enqueue(engine, *(queue(user_id=number) for number in range(count)))
    with Subscriber(queue, engine) as subscriber:
        messages = subscriber.get_many(count, 20)
        while len(messages) < count:
            messages += subscriber.get_many(count, 20)
        for message in messages:
            with Session(engine) as session, session.begin():
                message.extend(session, 60)
    return messages


def test_create_all_adds_to_the_vschema_and_drop_all_removes_from_it(
    engine: Engine, queue: type[Any], base: type[DeclarativeBase]
) -> None:
    table = queue.__table__
    with engine.connect() as connection:
        [vindex] = vindexes_of(connection, table)
        assert (vindex.name, vindex.type, vindex.columns) == ("hash", "hash", ("user_id",))
    base.metadata.create_all(engine)  # Everything exists already.
    base.metadata.drop_all(engine, [table])
    with engine.connect() as connection:
        assert vindexes_of(connection, table) == []
    base.metadata.create_all(engine)


def test_a_message_is_inserted_in_the_shard_of_its_data(engine: Engine, queue: type[Any]) -> None:
    def sign_up(session: Session) -> None:
        user = queue.User(id=random_id())
        session.add_all([user, queue(user_id=user.id)])

    # In the mode SINGLE no transaction may span two shards.
    single = create_engine(engine.url)

    @event.listens_for(single, "checkout")
    def _use_single(connection: Any, *_rest: Any) -> None:
        connection.cursor().execute("SET transaction_mode = 'SINGLE'")

    for _ in range(20):
        with Session(single) as session, session.begin():
            sign_up(session)
    with pytest.raises(OperationalError, match="multi-db transaction"):
        enqueue(single, *(queue(user_id=number) for number in range(20)))
    single.dispose()
    assert plans_of(engine, sign_up) == ["Sharded", "Sharded"]


@pytest.mark.parametrize("action", ["ack", "fail", "retry", "extend"])
def test_a_settlement_goes_to_one_shard(engine: Engine, queue: type[Any], action: str) -> None:
    [message] = received(engine, queue, 1)
    arguments = (60,) if action == "extend" else ()
    plans = plans_of(engine, lambda session: getattr(message, action)(session, *arguments))
    assert plans == ["EqualUnique"]


@pytest.mark.parametrize("action", ["ack_all", "fail_all", "retry_all", "extend_all"])
def test_settlements_of_many_are_grouped_by_shard(
    engine: Engine, queue: type[Any], action: str
) -> None:
    messages = received(engine, queue, 60)
    users_by_shard = {lease_of(m).shard: set() for m in messages}
    for message in messages:
        users_by_shard[lease_of(message).shard].add(message.user_id)
    assert users_by_shard.keys() == {"sharded:-80", "sharded:80-"}
    statements: list[Any] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    with Session(engine) as session, session.begin():
        arguments = (60,) if action == "extend_all" else ()
        getattr(queue, action)(session, messages, *arguments)
    event.remove(engine, "before_cursor_execute", record)
    updates = [(s, p) for s, p in statements if s.startswith("UPDATE")]
    assert len(updates) == 2
    with engine.connect() as connection:
        for statement, parameters in updates:
            assert '"Variant": "IN"' in explain(connection, statement, parameters)
            users = {v for k, v in parameters.items() if k.startswith("_user_ids")}
            assert users in list(users_by_shard.values())


def test_a_subscriber_may_receive_from_one_shard(engine: Engine, queue: type[Any]) -> None:
    enqueue(engine, *(queue(user_id=number) for number in range(60)))
    counts = []
    for shards in (["-80"], ["80-"]):
        with Subscriber(queue, engine, transport=Pull(shards=shards)) as subscriber:
            got = list(iter(lambda s=subscriber: s.get(1), None))
            assert {lease_of(m).shard for m in got} == {f"sharded:{shards[0]}"}
            with Session(engine) as session, session.begin():
                queue.ack_all(session, got)
            counts.append(len(got))
    assert sum(counts) == 60
    assert min(counts) > 10


def test_a_bind_of_one_shard_is_refused(engine: Engine, queue: type[Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"use transport=Pull\(shards=\['-80'\]\)"):
        Subscriber(queue, engine.url.set(database="sharded:80-"))


def test_shards_that_do_not_exist_are_refused(engine: Engine, queue: type[Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"shards=\['0'\]: the keyspace has -80, 80-"):
        Subscriber(queue, engine, transport=Pull(shards=["0"])).open()
    main = create_engine(server_url("vtgate"))
    queue.__table__.create(main)
    with pytest.raises(InvalidArgument, match="has no shards"):
        Subscriber(queue, main, transport=Pull(shards=["-80"])).open()
    queue.__table__.drop(main)
    main.dispose()
    for wrong in ("-80", [""], []):
        with pytest.raises(MessageQueueError, match="shards="):
            Pull(shards=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, ["-40", "40-80", "80-"]),
        (["-80"], ["-40", "40-80"]),
        (["40-"], ["40-80", "80-"]),
        (["-"], ["-40", "40-80", "80-"]),
        (["c0-"], ["80-"]),
        (["-40", "80-"], ["-40", "80-"]),
    ],
)
def test_key_ranges_choose_the_shards_that_they_overlap(
    wanted: list[str] | None, chosen: list[str]
) -> None:
    targets = ["k:-40", "k:40-80", "k:80-"]
    assert choose_shards(targets, wanted) == [f"k:{name}" for name in chosen]


def test_ids_may_come_from_a_sequence_and_be_found_by_a_lookup_vindex(
    engine: Engine, queue: type[Any]
) -> None:
    name = f"seq_{secrets.token_hex(4)}"
    lookup = f"lookup_{name}"
    main = create_engine(server_url("vtgate"))
    with main.connect() as connection:
        connection.execute(
            text(
                f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, next_id BIGINT, cache BIGINT) "
                "COMMENT 'vitess_sequence'"
            )
        )
        connection.execute(
            text(f"CREATE TABLE {lookup} (id BIGINT PRIMARY KEY, keyspace_id VARBINARY(128))")
        )
        alter_vschema(connection, AddSequence(name))
        sequence = Table(name, queue.metadata, autoload_with=connection)
        queue.metadata.remove(sequence)
        wait_until_routable(connection, sequence)
        connection.execute(sequence.insert().values(id=0, next_id=1000, cache=100))
        connection.commit()
    params = {"table": f"main.{lookup}", "from": "id", "to": "keyspace_id"}
    table = queue.__table__
    with engine.connect() as connection:
        owned = {**params, "owner": table.name}
        alter_vschema(connection, CreateVindex(lookup, "consistent_lookup_unique", owned))
        alter_vschema(connection, AddVindex(table.name, ["id"], lookup))
        eventually(lambda: len(vindexes_of(connection, table)) == 2)
    ids = reserve_ids(engine, f"main.{name}", 20)
    assert list(ids) == list(range(1000, 1020))
    assert reserve_ids(engine, f"main.{name}", 1)[0] >= 1020
    messages = [queue(id=id_, user_id=id_) for id_ in ids]
    enqueue(engine, *messages)
    with engine.connect() as connection:
        query = f"SELECT * FROM {table.name} WHERE id = 1003"  # noqa: S608
        plan = explain(connection, query, None)
        assert "VindexLookup" in plan
        assert "Scatter" not in plan
        assert connection.scalar(select(queue.user_id).where(queue.id == 1003)) == 1003
    with Subscriber(queue, engine) as subscriber:
        got = list(iter(lambda: subscriber.get(2), None))
        assert sorted(m.id for m in got) == list(ids)
        with Session(engine) as session, session.begin():
            queue.ack_all(session, got)
    with engine.connect() as connection:
        alter_vschema(connection, RemoveVindex(table.name, lookup))
        alter_vschema(connection, DropVindex(lookup))
    with main.connect() as connection:
        alter_vschema(connection, DropSequence(name))
        connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text(f"DROP TABLE {lookup}"))
    main.dispose()


def test_columns_that_cannot_determine_a_shard_are_refused() -> None:
    def make(**columns: Any) -> Any:
        options = QueueOptions(shard_by=["user_id"], vindex="hash")
        return make_queue_class(options, attributes=columns)

    with pytest.raises(InvalidQueue, match="no column 'user_id'"):
        make()
    with pytest.raises(InvalidQueue, match="may be NULL"):
        make(user_id=mapped_column(BigInteger, nullable=True))
    with pytest.raises(InvalidArgument, match="give both"):
        QueueOptions(shard_by="user_id")
    with pytest.raises(InvalidQueue, match="'epoch' can't determine"):
        make_queue_class(QueueOptions(shard_by="epoch", vindex="hash"))


def test_a_message_without_its_shard_is_refused_before_it_is_sent(
    engine: Engine, queue: type[Any]
) -> None:
    with pytest.raises(InvalidArgument, match="user_id=None"):
        enqueue(engine, queue())


def test_a_queue_may_be_sharded_by_several_columns(
    engine: Engine, base: type[DeclarativeBase]
) -> None:
    vindex = f"multi_{secrets.token_hex(4)}"
    with engine.connect() as connection:
        params = {
            "column_count": "2",
            "column_bytes": "1,7",
            "column_vindex": "hash,hash",
        }
        alter_vschema(connection, CreateVindex(vindex, "multicol", params))
    options = QueueOptions(shard_by=["region", "user_id"], vindex=vindex)
    attributes = {
        "region": mapped_column(BigInteger, nullable=False),
        "user_id": mapped_column(BigInteger, nullable=False),
    }
    model = make_queue_class(options, base=base, attributes=attributes)
    base.metadata.create_all(engine)
    enqueue(engine, *(model(region=n % 3, user_id=n) for n in range(30)))
    with Subscriber(model, engine) as subscriber:
        got = list(iter(lambda: subscriber.get(2), None))
    assert len(got) == 30
    assert plans_of(engine, got[0].ack) == ["EqualUnique"]
    with Session(engine) as session, session.begin():
        model.ack_all(session, got[1:])
    base.metadata.drop_all(engine)
    with engine.connect() as connection:
        alter_vschema(connection, DropVindex(vindex))


def test_periodic_messages_are_refused_with_the_reason(
    engine: Engine, base: type[DeclarativeBase]
) -> None:
    poll = Periodic("poll", timedelta(seconds=1), lambda _tick: None)
    options = QueueOptions(shard_by="tenant", vindex="hash")
    queue = make_queue_class(options, base=base)
    for _ in range(2):  # The table of last ticks hinders nobody.
        base.metadata.create_all(engine)
    with pytest.raises(InvalidArgument, match="the keyspace is sharded, where a message and"):
        Scheduler(sessionmaker(engine), [poll]).start()
    with engine.connect() as connection:
        findings = check_queues(connection, [queue.__table__])
    [finding] = [finding for finding in findings if finding.table == TICKS.name]
    assert not finding.is_error
    base.metadata.drop_all(engine)


def test_an_event_is_published_to_the_shards_of_its_messages(
    engine: Engine, base: type[DeclarativeBase]
) -> None:
    class Joined(Topic):
        user_id: Mapped[int] = mapped_column(BigInteger)

    options = QueueOptions(shard_by="user_id", vindex="hash")
    abstract: Any = type("Abstract", (Joined, base), {"__abstract__": True})
    queue = make_queue_class(options, base=abstract)
    base.metadata.create_all(engine)
    try:
        with Session(engine) as session, session.begin():
            Joined.publish_all(session, [Joined(user_id=number) for number in range(20)])
        with Session(engine) as session:
            assert sorted(session.scalars(select(queue.user_id))) == list(range(20))
    finally:
        base.metadata.drop_all(engine)
