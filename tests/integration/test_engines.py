"""Engines and sessions of the kinds that applications make: each works, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Engine,
    Update,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import NullPool, StaticPool

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidQueue,
    QueueOptions,
    Subscriber,
    Worker,
    emits,
    on_commit,
)
from sqla_vitess_messages.aio import AsyncSubscriber
from sqla_vitess_messages.cli.check import check_queues
from sqla_vitess_messages.events import Reconnecting, Settled
from tests.async_adapter import AsyncSubscriberAdapter
from tests.backends import (
    BACKENDS,
    Backend,
    async_url,
    enqueue,
    eventually,
    make_queue_class,
    row,
)

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]

SERVERS = [backend for backend in BACKENDS if backend.server in {"mysql", "mariadb"}]
"""The backends with two-phase commits."""

ROW_LOCKS = [backend for backend in BACKENDS if backend.name in {"mysql", "vitess"}]


def bodies(subscriber: Any, count: int) -> list[str]:
    """Receive so many messages, and no more, and return their bodies."""
    found = [message.body for _ in range(count) if (message := subscriber.get(15)) is not None]
    assert subscriber.get(0.3) is None
    return sorted(found)


class TwoPhase:
    """Transactions with two phases, by each of the ways to end them."""

    @staticmethod
    def session(engine: Engine, message: Any) -> None:
        with Session(engine, twophase=True) as session, session.begin():
            message.ack(session)

    @staticmethod
    def prepared(engine: Engine, message: Any) -> None:
        with Session(engine, twophase=True) as session:
            message.ack(session)
            session.prepare()
            session.commit()

    @staticmethod
    def connection(engine: Engine, message: Any) -> None:
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            message.ack(connection)
            transaction.prepare()
            transaction.commit()


class ByHand:
    """Transactions that are committed by a call, on a connection that is used on."""

    @staticmethod
    def session(engine: Engine, message: Any) -> None:
        with Session(engine) as session:
            message.ack(session)
            session.commit()
            session.execute(select(1))

    @staticmethod
    def registry(engine: Engine, message: Any) -> None:
        registry = scoped_session(sessionmaker(engine))
        message.ack(registry)
        registry.commit()
        registry.remove()

    @staticmethod
    def connection(engine: Engine, message: Any) -> None:
        with engine.connect() as connection:
            message.ack(connection)
            connection.commit()
            connection.execute(select(1))

    @staticmethod
    def transaction(engine: Engine, message: Any) -> None:
        with engine.connect() as connection:
            transaction = connection.begin()
            message.ack(connection)
            transaction.commit()

    @staticmethod
    def joined(engine: Engine, message: Any) -> None:
        """A session that joins a transaction of its caller's, as in test suites."""
        with engine.connect() as connection, connection.begin() as outer:
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                message.ack(session)
                session.commit()
            outer.commit()


def check_slots(subscribe: Subscribe, queue: type[Any], engine: Engine, settle: Any) -> None:
    """Settle one message after the other, each of which takes the only slot."""
    events: list[Any] = []
    enqueue(engine, *(queue(body=str(number)) for number in range(3)))
    subscriber = subscribe(queue, max_concurrency=1, on_event=events.append)
    for _ in range(3):
        message = subscriber.get(5)
        assert message is not None, "the slot of the settled message isn't free"
        settle(engine, message)
        assert row(engine, message).time_acked is not None
    eventually(lambda: sum(isinstance(happened, Settled) for happened in events) == 3)


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("way", ["session", "prepared", "connection"])
def test_a_two_phase_commit_frees_its_slot(
    make_queue: MakeQueue, engine: Engine, subscribe: Subscribe, way: str
) -> None:
    check_slots(subscribe, make_queue(ack_wait=60), engine, getattr(TwoPhase, way))


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)
def test_a_two_phase_transaction_that_rolls_back_settles_nothing(
    queue: type[Any], engine: Engine, subscribe: Subscribe
) -> None:
    enqueue(engine, queue())
    message = subscribe(queue).get(15)
    with Session(engine, twophase=True) as session:
        message.ack(session)
        session.prepare()
        session.rollback()
    assert row(engine, message).time_acked is None
    with Session(engine, twophase=True) as session, session.begin():
        message.ack(session)
    assert row(engine, message).time_acked is not None


@pytest.mark.parametrize("way", ["session", "registry", "connection", "transaction", "joined"])
def test_a_commit_by_hand_frees_its_slot(
    make_queue: MakeQueue, engine: Engine, subscribe: Subscribe, way: str
) -> None:
    check_slots(subscribe, make_queue(ack_wait=60), engine, getattr(ByHand, way))


@pytest.mark.parametrize("method", ["ack", "fail", "retry"])
def test_a_session_in_autocommit_mode_is_refused(
    queue: type[Any], engine: Engine, subscribe: Subscribe, method: str
) -> None:
    enqueue(engine, queue())
    message = subscribe(queue).get(15)
    before = row(engine, message)
    each_statement = engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(each_statement) as session, pytest.raises(InvalidArgument, match="autocommit"):
        getattr(message, method)(session)
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidArgument, match="autocommit"):
            getattr(message, method)(connection)
    assert row(engine, message)[:5] == before[:5]


def test_a_worker_whose_sessions_are_in_autocommit_mode_does_not_start(
    queue: type[Any], engine: Engine, url: str, backend: Backend
) -> None:
    enqueue(engine, queue())
    each_statement = engine.execution_options(isolation_level="AUTOCOMMIT")
    subscriber = Subscriber(queue, url, **backend.options)
    worker: Worker[Any] = Worker(subscriber, lambda *_: None, sessionmaker(each_statement))
    with pytest.raises(InvalidArgument, match="autocommit"):
        worker.start()
    assert not subscriber.is_open


def test_what_is_emitted_in_autocommit_mode_is_refused(
    make_queue: MakeQueue, engine: Engine
) -> None:
    queue = make_queue()
    each_statement = engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(each_statement) as session:
        on_commit(session, queue)
        session.connection()
        with pytest.raises(InvalidArgument, match="autocommit"):
            session.commit()
    with Session(engine) as session:
        assert session.scalar(select(queue.id)) is None


@pytest.mark.parametrize("backend", ROW_LOCKS, ids=lambda backend: backend.name)
def test_a_pool_without_a_free_connection_does_not_end_the_subscriber(
    queue: type[Any], engine: Engine, url: str, backend: Backend, subscribe: Subscribe
) -> None:
    events: list[Any] = []
    small = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    subscriber = subscribe(queue, small, on_event=events.append)
    enqueue(engine, queue())
    message = subscriber.get(15)
    with Session(engine) as session, session.begin():
        session.execute(select(queue.id).where(queue.id == message.id).with_for_update())
        waiting = subscriber.ack(message)  # It waits for the row, with the only connection.
        eventually(lambda: any(isinstance(one, Reconnecting) for one in events) or waiting.done())
    enqueue(engine, *(queue(body=str(number)) for number in range(5)))
    assert len({subscriber.get(15).id for _ in range(5)}) == 5
    assert subscriber.is_open
    small.dispose()


def test_a_pool_timeout_of_the_workers_sessions_costs_no_attempt(
    queue: type[Any], engine: Engine, url: str, backend: Backend
) -> None:
    small = create_engine(
        url, pool_size=1, max_overflow=0, pool_timeout=0.1, connect_args=timeout_of(backend)
    )
    attempts: dict[str, int] = {}
    enqueue(engine, *(queue(body=str(number)) for number in range(2)))
    held = small.connect()
    subscriber = Subscriber(queue, url, **backend.options)
    worker: Worker[Any] = Worker(
        subscriber, lambda message, _session: attempts.update({message.body: message.attempts}),
        sessionmaker(small), concurrency=2,
    )  # fmt: skip
    with worker:
        with pytest.raises(PoolTimeout):
            small.connect()
        held.close()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            eventually(lambda: queue.stats(connection).acked == 2)
    assert attempts == {"0": 0, "1": 0}
    small.dispose()


def timeout_of(backend: Backend) -> dict[str, Any]:
    """Return connect arguments by which writers on SQLite wait for one another."""
    return {"timeout": 30} if backend.server is None else {}


class Tenants:
    """Two tenants' schemas on one server, with the same queue in each."""

    names = ("tenant_one", "tenant_two")

    def __init__(self, url: str, folder: Path, backend: Backend) -> None:
        self.backend = backend
        self._folder = folder
        self._url = url
        self.plain = self._set_up(create_engine(url, connect_args=timeout_of(backend)))
        if backend.server is not None:
            with self.plain.begin() as connection:
                for name in self.names:
                    connection.execute(text(f"CREATE DATABASE IF NOT EXISTS {name}"))

    def _set_up(self, engine: Engine) -> Engine:
        if self.backend.server is None:
            event.listen(engine, "connect", self._attach)
        return engine

    def _attach(self, dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        for name in self.names:
            cursor.execute(f"ATTACH DATABASE '{self._folder}/{name}.db' AS {name}")
        cursor.close()

    def engine(self, name: str) -> Engine:
        """Return an engine of one tenant's."""
        return self.plain.execution_options(schema_translate_map={None: name})

    def receiving(self, name: str) -> Engine | AsyncEngine:
        """Return an engine for a subscriber, for asyncio if the backend says so."""
        if self.backend.driver is None:
            return self.engine(name)
        made = create_async_engine(async_url(self._url, self.backend.driver))
        self._set_up(made.sync_engine)
        return made.execution_options(schema_translate_map={None: name})


WITH_SCHEMAS = [
    *(backend for backend in BACKENDS if backend.server in {None, "mysql", "mariadb"}),
    Backend("mysql-asyncio", "mysql", "auto", "asyncmy"),
]


@contextmanager
def subscriber_of(backend: Backend, queue: type[Any], bind: Any) -> Iterator[Any]:
    subscriber: Any = Subscriber(queue, bind)
    if backend.driver is not None:
        subscriber = AsyncSubscriberAdapter(queue, bind)
    subscriber.open()
    try:
        yield subscriber
    finally:
        subscriber.close()


@pytest.mark.parametrize("backend", WITH_SCHEMAS, ids=lambda backend: backend.name)
def test_an_engine_that_translates_schemas_receives_its_tenants_messages_alone(
    url: str, tmp_path: Path, backend: Backend
) -> None:
    tenants = Tenants(url, tmp_path, backend)
    queue = make_queue_class(QueueOptions(ack_wait=10, min_backoff=0.2))
    engines = {name: tenants.engine(name) for name in tenants.names}
    try:
        for name, engine in engines.items():
            queue.metadata.create_all(engine)
            enqueue(engine, *(queue(body=f"{name} {number}") for number in range(3)))
        for name, engine in engines.items():
            with subscriber_of(backend, queue, tenants.receiving(name)) as subscriber:
                received = [subscriber.get(15) for _ in range(3)]
                assert sorted(message.body for message in received) == [
                    f"{name} {number}" for number in range(3)
                ]
                assert subscriber.get(0.3) is None
                with Session(engine) as session, session.begin():
                    received[0].ack(session)
                subscriber.fail(received[1], "no")
                assert subscriber.flush(10)
            with engine.connect() as connection:
                stats = queue.stats(connection)
                assert (stats.acked, stats.dead) == (1, 1)
    finally:
        for engine in engines.values():
            queue.metadata.drop_all(engine)
        tenants.plain.dispose()


@pytest.mark.parametrize("backend", WITH_SCHEMAS, ids=lambda backend: backend.name)
def test_a_model_may_be_in_a_schema(url: str, tmp_path: Path, backend: Backend) -> None:
    tenants = Tenants(url, tmp_path, backend)
    schema = {"__table_args__": {"schema": tenants.names[0]}}
    queue = make_queue_class(QueueOptions(ack_wait=10), attributes=schema)
    queue.metadata.create_all(tenants.plain)
    try:
        enqueue(tenants.plain, *(queue() for _ in range(3)))
        bind = tenants.receiving("unused")
        with subscriber_of(backend, queue, bind) as subscriber:
            received = [subscriber.get(15) for _ in range(3)]
            with Session(tenants.plain) as session, session.begin():
                queue.ack_all(session, received)
        with tenants.plain.connect() as connection:
            assert queue.stats(connection).acked == 3
    finally:
        queue.metadata.drop_all(tenants.plain)
        tenants.plain.dispose()


VITESS = [backend for backend in BACKENDS if backend.name in {"vitess", "vitess-grpc"}]


@pytest.mark.parametrize("backend", VITESS, ids=lambda backend: backend.name)
def test_a_schema_is_refused_on_vitess_before_any_ddl(engine: Engine) -> None:
    queue = make_queue_class(QueueOptions(), attributes={"__table_args__": {"schema": "sharded"}})
    with pytest.raises(InvalidQueue, match="a URL that ends in /sharded"):
        queue.metadata.create_all(engine)
    with engine.connect() as connection:
        assert not inspect(connection).has_table(queue.__tablename__, "sharded")
        found = check_queues(connection, [queue.__table__])
    [finding] = [one for one in found if one.table == queue.__tablename__]
    assert finding.is_error
    assert "/sharded" in finding.problem


@pytest.mark.parametrize("backend", VITESS, ids=lambda backend: backend.name)
def test_an_engine_that_translates_schemas_is_refused_on_vitess(
    queue: type[Any], engine: Engine, subscribe: Subscribe
) -> None:
    bind = engine.execution_options(schema_translate_map={None: "main"})
    with pytest.raises(InvalidQueue, match="its schema is 'main'"):
        subscribe(queue, bind)


class RoutedByClause(Session):
    """Sends what only reads to a replica, as in SQLAlchemy's documentation."""

    primary: Engine
    replica: Engine

    def get_bind(
        self, _mapper: Any = None, *, clause: ClauseElement | None = None, **_arguments: Any
    ) -> Any:
        writes = self._flushing or isinstance(clause, Update) or clause is None
        return self.primary if writes else self.replica


class RoutedByMapper(Session):
    """Knows the engine of a mapped class, and of nothing else."""

    primary: Engine
    replica: Engine
    model: type[Any]

    def get_bind(self, mapper: Any = None, **_arguments: Any) -> Any:
        return self.primary if mapper is not None and mapper.class_ is self.model else self.replica


@pytest.mark.parametrize("routing", [RoutedByClause, RoutedByMapper])
@pytest.mark.parametrize("method", ["ack", "fail", "retry", "extend"])
def test_a_session_with_several_engines_settles_where_it_would_write(
    tmp_path: Path, routing: Any, method: str
) -> None:
    queue = make_queue_class(QueueOptions(ack_wait=10))
    primary = create_engine(f"sqlite:///{tmp_path}/primary.db")
    queue.metadata.create_all(primary)
    enqueue(primary, queue())
    with Subscriber(queue, primary) as subscriber:
        message = subscriber.get(15)
    assert message is not None
    primary.dispose()
    shutil.copy(tmp_path / "primary.db", tmp_path / "replica.db")
    replica = create_engine(f"sqlite:///{tmp_path}/replica.db")
    before = row(replica, message)
    session_class = type(
        "Routed", (routing,), {"primary": primary, "replica": replica, "model": queue}
    )
    arguments = (120,) if method == "extend" else ()
    with session_class() as session:
        getattr(message, method)(session, *arguments)
        session.commit()
    assert row(replica, message) == before
    assert row(primary, message) != before


def test_a_session_with_several_engines_handles_requeues_and_counts_where_it_should(
    tmp_path: Path,
) -> None:
    queue = make_queue_class(QueueOptions(ack_wait=10))
    primary, replica = (
        create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("primary", "replica")
    )
    for engine in (primary, replica):
        queue.metadata.create_all(engine)
    enqueue(primary, queue(), queue())
    session_class = type("Routed", (RoutedByClause,), {"primary": primary, "replica": replica})
    seen: list[Any] = []

    def handle(message: Any, session: Session) -> None:
        session.execute(update(queue).where(queue.id == message.id).values(body="handled"))
        seen.append(message)

    with Worker(Subscriber(queue, primary), handle, session_class):
        eventually(lambda: len(seen) == 2)
    with primary.connect() as connection:
        assert queue.stats(connection).acked == 2
    with session_class() as session:
        stats = queue.stats(session)  # It reads, and so from the replica.
        assert (stats.acked, stats.ready) == (0, 0)


def test_what_is_emitted_must_be_in_the_database_of_the_data(tmp_path: Path) -> None:
    class Base(DeclarativeBase):
        pass

    class Data(Base):
        __tablename__ = "data"
        id: Mapped[int] = mapped_column(primary_key=True)

    queue = make_queue_class(QueueOptions(), base=Base)
    here, there = (create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("here", "there"))
    Base.metadata.create_all(here)
    Base.metadata.create_all(there)
    emits(Data, "insert")(lambda _changed: queue())
    with Session(binds={queue: there, Data: here}) as session:
        session.add(Data())
        with pytest.raises(InvalidArgument, match=r"there\.db"):
            session.commit()
    for engine in (here, there):
        with Session(engine) as session:
            assert session.scalar(select(queue.id)) is None
            assert session.scalar(select(Data.id)) is None


class Databases(NamedTuple):
    """Two databases, each with a table of data and a queue, which one registry maps."""

    here: Engine
    there: Engine
    queue: type[Any]
    data: type[Any]


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[Databases]:
    base = type("Base", (DeclarativeBase,), {})
    columns = {"__tablename__": "data", "id": mapped_column(BigInteger, primary_key=True)}
    data = type("Data", (base,), columns)
    queue = make_queue_class(QueueOptions(), base=base)
    engines = [create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("here", "there")]
    for engine in engines:
        base.metadata.create_all(engine)
    yield Databases(*engines, queue, data)
    for engine in engines:
        engine.dispose()


def test_a_message_may_commit_in_a_session_that_reads_from_a_replica(databases: Databases) -> None:
    here, there, queue, data = databases
    routed: Any = type("Routed", (RoutedByClause,), {"primary": here, "replica": there})
    for bind in (None, there):  # Which its get_bind doesn't use.
        with routed(bind=bind) as session, session.begin():
            assert session.scalars(select(data)).all() == []
            on_commit(session, queue)
    with Session(here) as session:
        assert queue.stats(session).ready == 2


def test_a_message_must_commit_with_the_data_where_a_session_chooses_engines(
    databases: Databases,
) -> None:
    here, there, queue, data = databases
    routing = {"primary": here, "replica": there, "model": queue}
    routed: Any = type("Routed", (RoutedByMapper,), routing)
    with routed() as session:
        session.add(data(id=1))
        on_commit(session, queue)
        with pytest.raises(InvalidArgument, match="can't commit with the data"):
            session.commit()


def test_a_sharded_session_that_needs_an_instance_is_refused_with_the_reason(
    databases: Databases,
) -> None:
    here, there, queue, _data = databases
    enqueue(here, queue())
    shards = {"a": here, "b": there}
    session = ShardedSession(
        shards=shards,
        shard_chooser=lambda _mapper, instance, **_clause: "a" if instance.id % 2 else "b",
        identity_chooser=lambda *_key, **_options: list(shards),
        execute_chooser=lambda _context: list(shards),
    )
    with session, Subscriber(queue, here) as subscriber:
        message = subscriber.get(15)
        assert message is not None
        with pytest.raises(InvalidArgument, match="shard_chooser, raised AttributeError"):
            message.ack(session)


def connecting(url: str) -> Callable[[], Any]:
    """Return a ``creator`` for a URL: a function that connects."""
    engine = create_engine(url)
    arguments, options = engine.dialect.create_connect_args(engine.url)
    return lambda: engine.dialect.connect(*arguments, **options)


BINDS: dict[str, Callable[[str], Engine]] = {
    "creator": lambda url: create_engine(f"{make_url(url).drivername}://", creator=connecting(url)),
    "no pool": lambda url: create_engine(url, poolclass=NullPool),
    "pre-ping": lambda url: create_engine(url, pool_pre_ping=True, pool_recycle=1),
    "lifo": lambda url: create_engine(url, pool_size=2, max_overflow=5, pool_use_lifo=True),
    "no reset": lambda url: create_engine(url, pool_reset_on_return=None),
    "repeatable": lambda url: create_engine(url, isolation_level="SERIALIZABLE"),
    "autocommit": lambda url: create_engine(url, isolation_level="AUTOCOMMIT"),
    "options": lambda url: create_engine(url).execution_options(
        isolation_level="AUTOCOMMIT", stream_results=True, yield_per=10
    ),
    "logged": lambda url: create_engine(url, logging_name="app", hide_parameters=True),
    "url object": lambda url: create_engine(make_url(url)),
}


@pytest.mark.parametrize(
    "backend",
    [
        backend
        for backend in BACKENDS
        if backend.name in {"sqlite", "mysql", "vitess", "vitess-stream", "vitess-grpc"}
    ],
    ids=lambda backend: backend.name,
)
@pytest.mark.parametrize("kind", BINDS)
def test_a_subscriber_copies_engines_of_every_kind(
    queue: type[Any], engine: Engine, url: str, subscribe: Subscribe, backend: Backend, kind: str
) -> None:
    bind = BINDS[kind](url)
    enqueue(engine, *(queue(body=str(number)) for number in range(5)))
    subscriber = subscribe(queue, bind)
    received = [subscriber.get(15) for _ in range(5)]
    assert sorted(message.body for message in received) == list("01234")
    with Session(engine) as session, session.begin():
        queue.ack_all(session, received[:2])
    for message in received[2:]:
        subscriber.ack(message)
    assert subscriber.flush(10)
    with engine.connect() as connection:
        assert queue.stats(connection).acked == 5
    bind.dispose()


def test_events_of_the_pool_are_those_of_the_copied_engine(
    queue: type[Any], engine: Engine, url: str, subscribe: Subscribe, backend: Backend
) -> None:
    """Passwords that expire are given by such an event, and sessions are set up by one."""
    if backend.driver is not None:
        pytest.skip("a subscriber for asyncio gets an AsyncEngine, whose events are the same")
    connected: list[str] = []
    bind = create_engine(url)
    event.listen(bind, "do_connect", lambda *_: connected.append("do_connect"))
    event.listen(bind, "connect", lambda *_: connected.append("connect"))
    enqueue(engine, queue())
    assert subscribe(queue, bind).get(15) is not None
    assert {"do_connect", "connect"} <= set(connected)


@pytest.mark.parametrize("driver", [None, "aiosqlite"])
def test_an_engine_with_one_connection_is_refused(tmp_path: Path, driver: str | None) -> None:
    queue = make_queue_class(QueueOptions())
    url = f"sqlite:///{tmp_path}/test.db"
    make: Callable[[], object] = lambda: Subscriber(  # noqa: E731
        queue, create_engine(url, poolclass=StaticPool)
    )
    if driver is not None:
        bind = create_async_engine(async_url(url, driver), poolclass=StaticPool)
        make = lambda: AsyncSubscriber(queue, bind)  # noqa: E731
    with pytest.raises(InvalidArgument, match="StaticPool"):
        make()
