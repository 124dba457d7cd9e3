"""SQLite: transactions that begin with a savepoint or a WITH, and a database that is locked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    create_engine,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.util import await_only

from sqla_vitess_messages import QueueOptions, RetryPolicy, Subscriber, Worker, random_id
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker
from tests.backends import eventually, make_queue_class
from tests.sqlite_engines import (
    DRIVERS,
    KINDS,
    WITHOUT_TRANSACTIONS,
    Kind,
    is_in_transaction,
    run,
    with_drivers,
)

DEFAULT, BEGIN = KINDS[0], next(kind for kind in KINDS if kind.recipe == "engine")
ONCE = RetryPolicy(max_attempts=1)
QUICK = RetryPolicy(max_attempts=3, min_delay=0.01, max_delay=0.02)


class Bench:
    """A queue in a file, and an account that handlers pay into."""

    def __init__(self, folder: Path, **options: Any) -> None:
        class Base(DeclarativeBase):
            pass

        class Account(Base):
            __tablename__ = "account"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
            balance: Mapped[int] = mapped_column(default=0)

        self.url = f"sqlite:///{folder}/test.db"
        self.plain = create_engine(self.url, connect_args={"timeout": 30})
        self.queue = make_queue_class(
            QueueOptions(**{"ack_wait": 30, "min_backoff": 0.1} | options), base=Base
        )
        self.Account = Account
        Base.metadata.create_all(self.plain)

    def enqueue(self, count: int = 1) -> None:
        with Session(self.plain) as session, session.begin():
            session.add_all([self.queue(body=str(number)) for number in range(count)])

    def count(self, model: type[Any]) -> int:
        with Session(self.plain) as session:
            return session.scalar(select(func.count()).select_from(model)) or 0

    def stats(self) -> Any:
        with Session(self.plain) as session:
            return self.queue.stats(session)

    def balance(self) -> int:
        with Session(self.plain) as session:
            return session.scalars(select(self.Account.balance)).one()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold SQLite's write lock for the length of a block."""
        with self.plain.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
            connection.rollback()

    def work(
        self,
        engine: Engine | AsyncEngine,
        handle: Callable[[Any, Session], None],
        until: Callable[[], object],
        **options: Any,
    ) -> None:
        """Run a worker until a condition holds.

        :param handle: with asyncio, called in ``run_sync``.
        """
        options = {"retry": QUICK, "concurrency": 1, "shutdown_timeout": 5} | options
        if isinstance(engine, Engine):
            with Worker(Subscriber(self.queue, engine), handle, sessionmaker(engine), **options):
                eventually(until, within=40)
            return

        async def handle_async(message: Any, session: AsyncSession) -> None:
            await session.run_sync(lambda sync: handle(message, sync))

        async def main() -> None:
            subscriber = AsyncSubscriber(self.queue, engine)
            sessions = async_sessionmaker(engine)
            async with AsyncWorker(subscriber, handle_async, sessions, **options):
                await asyncio.to_thread(eventually, until, 40)
            await engine.dispose()

        asyncio.run(main())


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.plain.dispose()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@with_drivers(*KINDS)
def test_a_rollback_undoes_a_savepoint_that_came_first(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    def transact(engine: Engine) -> None:
        with Session(engine) as session:
            with session.begin_nested():
                session.add(bench.queue(body="rolled back"))
            with session.begin_nested():
                session.add(bench.Account())
            session.rollback()
        with engine.connect() as connection:
            with connection.begin_nested():
                connection.execute(insert(bench.Account).values(id=1, balance=0))
            connection.rollback()
        with Session(engine) as session, session.begin():
            with session.begin_nested() as inner:
                session.add(bench.queue(body="rolled back"))
                inner.rollback()
            with session.begin_nested():
                session.add(bench.queue(body="committed"))

    with kind.engine(bench.url, driver) as engine:
        run(engine, transact)
    assert (bench.count(bench.queue), bench.count(bench.Account)) == (1, 0)


@with_drivers(*KINDS)
def test_a_handler_that_begins_with_a_savepoint_and_fails_has_no_effect(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    def handle(_message: Any, session: Session) -> None:
        with session.begin_nested():
            session.add(bench.Account())
        raise ValueError("fails afterwards")

    bench.enqueue()
    with kind.engine(bench.url, driver) as engine:
        bench.work(engine, handle, lambda: bench.stats().dead)
    assert bench.count(bench.Account) == 0


def with_update(bench: Bench) -> Any:
    chosen = select(bench.Account.id).cte("chosen")
    return (
        update(bench.Account)
        .where(bench.Account.id.in_(select(chosen.c.id)))
        .values(balance=bench.Account.balance + 1)
        .execution_options(synchronize_session=False)
    )


@with_drivers(*KINDS)
def test_a_rollback_undoes_a_statement_with_a_cte_that_came_first(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    def transact(engine: Engine) -> None:
        for statement, values in statements:
            with Session(engine) as session:
                session.connection().execute(statement, values)
                session.rollback()

    table = bench.queue.__table__
    source = select((bench.Account.id + 1).label("id"), literal("rolled back").label("body")).cte()
    statements: list[tuple[Any, Any]] = [
        (with_update(bench), {}),
        (insert(table).from_select(["id", "body"], select(source.c.id, source.c.body)), {}),
        (delete(bench.Account).where(bench.Account.id.in_(select(source.c.id - 1))), {}),
        (text("/* a */ -- b\n with a as (select 1) update account set balance = :balance"),
         [{"balance": 2}, {"balance": 3}]),
    ]  # fmt: skip
    with bench.plain.begin() as connection:
        connection.execute(insert(bench.Account).values(id=1, balance=0))
    with kind.engine(bench.url, driver) as engine:
        run(engine, transact)
    assert (bench.count(bench.queue), bench.balance()) == (0, 0)


@with_drivers(DEFAULT)
def test_a_handler_that_begins_with_a_cte_and_fails_has_no_effect(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    def handle(_message: Any, session: Session) -> None:
        session.execute(with_update(bench))
        raise ValueError("fails afterwards")

    bench.enqueue()
    with bench.plain.begin() as connection:
        connection.execute(insert(bench.Account).values(id=1, balance=0))
    with kind.engine(bench.url, driver) as engine:
        bench.work(engine, handle, lambda: bench.stats().dead)
    assert bench.balance() == 0


@with_drivers(DEFAULT)
def test_what_only_reads_or_can_be_in_no_transaction_begins_none(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    """A read that holds a transaction open keeps others from writing, and has an old snapshot."""

    def transact(engine: Engine) -> None:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement)).close()
                assert not is_in_transaction(connection), statement

    statements = [
        "SELECT 'WITH a INSERT'",
        "WITH a AS (SELECT 1 AS updated) SELECT replace(updated, 1, 2) FROM a",
        "-- with an update\nSELECT 1",
        "PRAGMA foreign_keys = ON",
        "CREATE TABLE other (id INTEGER)",
        "VACUUM",
    ]
    with kind.engine(bench.url, driver) as engine:
        run(engine, transact)


@with_drivers(*WITHOUT_TRANSACTIONS)
def test_an_engine_without_transactions_is_left_as_it_is(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    def transact(engine: Engine) -> None:
        with Session(engine) as session:
            with session.begin_nested():
                session.add(bench.Account())
            assert not is_in_transaction(session.connection())
            session.rollback()
            session.execute(with_update(bench))
            assert not is_in_transaction(session.connection())
            session.rollback()

    with kind.engine(bench.url, driver) as engine:
        run(engine, transact)
    assert bench.balance() == 1


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_a_savepoint_keeps_the_lock_mode_of_its_engine(bench: Bench, driver: str | None) -> None:
    def transact(engine: Engine) -> None:
        with engine.connect() as connection:
            connection.begin_nested()
            with pytest.raises(Exception, match="database is locked"), other.begin() as writing:
                writing.execute(insert(bench.Account).values(id=1, balance=0))

    immediate = next(kind for kind in KINDS if kind.name == "immediate")
    other = create_engine(bench.url, connect_args={"timeout": 0})
    with immediate.engine(bench.url, driver) as engine:
        run(engine, transact)
    other.dispose()


CONNECTED_BEFORE = """
import sys
from sqlalchemy import Engine, create_engine, text
engine = create_engine("sqlite:///" + sys.argv[1])
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE t (x int)"))
import sqla_vitess_messages
with engine.connect() as connection:
    with connection.begin_nested():
        connection.execute(text("INSERT INTO t VALUES (1)"))
    connection.rollback()
    print(connection.scalar(text("SELECT count(*) FROM t")), Engine._has_events)
"""

NO_SQLITE = """
import sys, sqla_vitess_messages
print("sqlalchemy.dialects.sqlite" in sys.modules, "sqlite3" in sys.modules)
"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [(CONNECTED_BEFORE, "0 False"), (NO_SQLITE, "False False")],
    ids=["an engine from before the import", "no SQLite"],
)
def test_nothing_but_sqlite_is_touched(tmp_path: Path, code: str, printed: str) -> None:
    """A listener on the class Engine would set its ``_has_events``, and slow all statements."""
    command = [sys.executable, "-c", code, str(tmp_path / "test.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == printed, done.stderr


@with_drivers(DEFAULT, BEGIN)
def test_a_locked_database_is_no_failed_attempt(
    bench: Bench, kind: Kind, driver: str | None
) -> None:
    """With BEGIN, one of two that have read and then write is refused at once."""

    def pay(_message: Any, session: Session) -> None:
        account = session.get_one(bench.Account, 1, with_for_update=True)
        time.sleep(0.01)
        account.balance = bench.Account.balance + 1

    count = 40
    bench.enqueue(count)
    with bench.plain.begin() as connection:
        connection.execute(insert(bench.Account).values(id=1, balance=0))
    with kind.engine(bench.url, driver) as engine:
        bench.work(
            engine,
            pay,
            lambda: bench.stats().acked + bench.stats().dead == count,
            concurrency=8,
            retry=ONCE,
        )
    assert (bench.stats().acked, bench.balance()) == (count, count)


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
@pytest.mark.parametrize("batch_size", [None, 5], ids=["one", "batch"])
def test_a_lock_that_outlasts_the_lease_costs_no_attempt(
    make_bench: Callable[..., Bench], driver: str | None, batch_size: int | None
) -> None:
    """The message is released meanwhile, as if it had not been handed out."""

    def pay(message: Any, session: Session) -> None:
        [message] = message if batch_size else [message]
        epochs.append(message.epoch)
        begun.set()
        session.execute(update(bench.Account).values(balance=bench.Account.balance + 1))

    def lock() -> None:
        begun.wait(20)
        with bench.locked():
            time.sleep(6)

    epochs: list[int] = []
    begun = threading.Event()
    bench = make_bench(ack_wait=2)
    with bench.plain.begin() as connection:
        connection.execute(insert(bench.Account).values(id=1, balance=0))
    bench.enqueue()
    kind = Kind("impatient", {"connect_args": {"timeout": 0.1}})
    locking = threading.Thread(target=lock)
    locking.start()
    with kind.engine(bench.url, driver) as engine:
        bench.work(
            engine,
            pay,
            lambda: bench.stats().acked + bench.stats().dead,
            retry=RetryPolicy(max_attempts=2),
            batch_size=batch_size,
        )
    locking.join()
    assert (bench.stats().acked, bench.balance()) == (1, 1)


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_a_failure_is_written_though_the_database_is_locked_for_a_while(
    bench: Bench, driver: str | None
) -> None:
    def fail(_message: Any, session: Session) -> None:
        session.execute(text("SELECT 1"))
        locking.start()
        if driver is None:
            assert locked.wait(10)
        else:
            assert await_only(asyncio.to_thread(locked.wait, 10))
        raise ValueError("fails")

    def lock() -> None:
        with bench.locked():
            locked.set()
            time.sleep(2)

    locked = threading.Event()
    locking = threading.Thread(target=lock)
    bench.enqueue()
    kind = Kind("impatient", {"connect_args": {"timeout": 0.1}})
    with kind.engine(bench.url, driver) as engine:
        bench.work(
            engine,
            fail,
            lambda: bench.stats().dead,
            retry=ONCE,
        )
    locking.join()


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
@pytest.mark.parametrize("reason", ["lock", "pool"])
def test_another_database_that_is_busy_is_a_failed_attempt(
    bench: Bench, tmp_path: Path, driver: str | None, reason: str
) -> None:
    """Otherwise a message whose handler waits for itself there would be handled for ever."""

    def use_other(_message: Any, _session: Session) -> None:
        handled.append(True)
        with other.begin() as connection:
            connection.execute(text("CREATE TABLE t (x)"))

    handled: list[bool] = []
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    other = create_engine(
        f"sqlite:///{tmp_path}/other.db",
        connect_args={"timeout": 0.05},
        **(options if reason == "pool" else {}),
    )
    bench.enqueue()
    with other.connect() as holding, DEFAULT.engine(bench.url, driver) as engine:
        holding.exec_driver_sql("BEGIN IMMEDIATE")
        bench.work(engine, use_other, lambda: bench.stats().dead, retry=ONCE)
    other.dispose()
    assert len(handled) == 1


def test_a_pool_that_is_used_up_costs_no_attempt(bench: Bench) -> None:
    def pay(_message: Any, session: Session) -> None:
        handled.append(True)
        try:
            session.execute(text("SELECT 1"))
        finally:
            holding.close()

    handled: list[bool] = []
    narrow = Kind("narrow", {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05})
    bench.enqueue()
    with narrow.engine(bench.url, None) as engine:
        assert isinstance(engine, Engine)
        holding = engine.connect()
        bench.work(engine, pay, lambda: bench.stats().acked, retry=ONCE)
    assert len(handled) == 2


def test_a_handler_that_waits_for_itself_is_warned_of(
    make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    def write_twice(_message: Any, session: Session) -> None:
        session.add(bench.Account())
        session.flush()
        with session.get_bind().connect() as connection:  # type: ignore[union-attr]
            connection.execute(insert(bench.Account))

    bench = make_bench(ack_wait=1)
    bench.enqueue()
    impatient = Kind("impatient", {"connect_args": {"timeout": 0.05}})
    with impatient.engine(bench.url, None) as engine:
        bench.work(engine, write_twice, lambda: "its own session holds; rel" in caplog.text)
    assert bench.stats().dead == 0
