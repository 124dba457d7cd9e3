"""What is specific to asyncio: cancellation, wake-ups, workers, hooks of an AsyncSession.

Everything else is in the suite that runs over every backend, including the ``…-asyncio`` ones.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import URL, BigInteger, Engine, String, select, text, update
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import (
    Discard,
    InvalidArgument,
    InvalidArgumentType,
    MessageQueueError,
    Retry,
    RetryPolicy,
    Subscriber,
    SubscriberClosed,
    emits,
    hooks,
    on_commit,
    random_id,
    without_emits,
)
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker
from tests.backends import Backend, async_url, enqueue, eventually
from tests.deadlock_partner import FIRST, SECOND, DeadlockPartner

pytestmark = pytest.mark.parametrize(
    ("backend", "driver"),
    [
        (Backend("sqlite", None, "auto"), "aiosqlite"),
        (Backend("mysql", "mysql", "auto"), "asyncmy"),
        (Backend("vitess", "vtgate", "auto"), "asyncmy"),
        (Backend("vitess", "vtgate", "auto"), "aiomysql"),
    ],
    indirect=["backend"],
    ids=["sqlite-aiosqlite", "mysql-asyncmy", "vitess-asyncmy", "vitess-aiomysql"],
)
QUICK = RetryPolicy(max_attempts=3, min_delay=0.01, max_delay=0.02)


class Bench:
    """A queue, a table of effects, and a synchronous and an asynchronous engine."""

    def __init__(self, engine: Engine, url: URL, make_queue: Callable[..., type[Any]]) -> None:
        class Base(DeclarativeBase):
            pass

        self.queue = make_queue(Base, {"fail_reason": mapped_column(String(60))}, ack_wait=3)

        class Effect(Base):
            __tablename__ = f"effect_of_{self.queue.__tablename__}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
            body: Mapped[str] = mapped_column(String(100))

        self.Effect = Effect
        Base.metadata.create_all(engine)
        self.engine, self.url = engine, url
        self.async_engine: AsyncEngine = create_async_engine(url)
        self.sessions = async_sessionmaker(self.async_engine)

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a test's coroutine, and check that it leaves no task and no thread behind."""

        async def whole() -> Any:
            before = asyncio.all_tasks()
            try:
                return await main()
            finally:
                await self.async_engine.dispose()
                assert not asyncio.all_tasks() - before

        threads = threading.active_count()
        try:
            return asyncio.run(asyncio.wait_for(whole(), 60))
        finally:
            eventually(lambda: threading.active_count() <= threads)

    def subscriber(self, **options: Any) -> AsyncSubscriber[Any]:
        return AsyncSubscriber(self.queue, self.url, **options)

    async def apply(self, message: Any, session: AsyncSession) -> None:
        session.add(self.Effect(body=message.body))

    @asynccontextmanager
    async def working(self, handler: Any, **options: Any) -> AsyncIterator[AsyncWorker[Any]]:
        options = {"retry": QUICK} | options
        worker = AsyncWorker(self.subscriber(), handler, self.sessions, **options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.request_stop()
            await running

    async def settled(self, acked: int, dead: int = 0) -> None:
        for _ in range(1500):
            stats = await asyncio.to_thread(self.stats)
            if (stats.acked, stats.dead) == (acked, dead):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(stats)

    def enqueue(self, *bodies: str) -> None:
        enqueue(self.engine, *(self.queue(body=body) for body in bodies))

    async def enqueue_beside(self, *bodies: str) -> None:
        """Enqueue beside a worker of the same event loop, which may have SQLite's write lock."""
        await asyncio.to_thread(self.enqueue, *bodies)

    def stats(self) -> Any:
        with Session(self.engine) as session:
            return self.queue.stats(session)

    def effects(self) -> Counter[str]:
        with Session(self.engine) as session:
            return Counter(session.scalars(select(self.Effect.body)))

    def reasons(self) -> list[str]:
        with Session(self.engine) as session:
            return sorted(message.fail_reason for message in self.queue.dead(session))


@pytest.fixture
def bench(
    engine: Engine, url: str, driver: str, make_queue: Callable[..., type[Any]]
) -> Iterator[Bench]:
    yield Bench(engine, async_url(url, driver), make_queue)
    hooks._emitters.clear()


def test_a_rollback_undoes_an_enqueue(bench: Bench) -> None:
    async def main() -> None:
        async with bench.sessions() as session:
            session.add(bench.queue(body="never"))
            await session.flush()
            await session.rollback()
            session.add(bench.queue(body="kept"))
            await session.commit()
        async with bench.subscriber() as subscriber:
            message = await subscriber.get(20)
            assert message.body == "kept"
            assert await subscriber.get(0.2) is None

    bench.run(main)


def test_iteration_ends_when_the_subscriber_closes(bench: Bench) -> None:
    async def main() -> list[str]:
        bench.enqueue("a", "b", "c")
        seen: list[str] = []
        async with bench.subscriber() as subscriber:
            async for message in subscriber:
                async with bench.sessions() as session, session.begin():
                    await session.run_sync(message.ack)
                seen.append(message.body)
                if len(seen) == 3:
                    asyncio.get_running_loop().call_later(0.1, subscriber.stop_receiving)
        with pytest.raises(SubscriberClosed):
            await subscriber.get()
        with pytest.raises(SubscriberClosed):
            subscriber.ack(message)
        return sorted(seen)

    assert bench.run(main) == ["a", "b", "c"]
    assert bench.stats().acked == 3


def test_cancelling_gives_leases_back(bench: Bench) -> None:
    bench.enqueue(*(str(number) for number in range(20)))

    async def main() -> None:
        waiting = asyncio.Event()

        async def consume() -> None:
            async with bench.subscriber() as subscriber:
                await subscriber.get(20)
                waiting.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(consume())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bench.run(main)
    stats = bench.stats()
    assert (stats.ready, stats.leased) == (19, 1)  # One was handed out.


def test_a_commit_in_the_same_process_wakes_a_pull(bench: Bench) -> None:
    async def main() -> None:
        async with bench.subscriber() as subscriber:
            await subscriber.get(0.5)
            subscriber._loop._transport.pause = 600  # Otherwise it would poll again in ten minutes.
            await asyncio.sleep(0.5)
            async with bench.sessions() as session, session.begin():
                session.add(bench.queue(body="woke it"))
            assert await subscriber.get(20) is not None

    bench.run(main)


def test_grouped_settlements_reach_their_futures(bench: Bench) -> None:
    async def main() -> None:
        bench.enqueue(*(str(number) for number in range(30)))
        async with bench.subscriber() as subscriber:
            messages = [await subscriber.get(20) for _ in range(30)]
            await asyncio.gather(*(subscriber.ack(message) for message in messages[:28]))
            subscriber.fail(messages[28], "no")
            subscriber.retry(messages[29], 60)
            assert await subscriber.flush(20)

    bench.run(main)
    stats = bench.stats()
    assert (stats.acked, stats.dead, stats.leased + stats.scheduled) == (28, 1, 1)


def test_an_async_session_runs_hooks(bench: Bench) -> None:
    @emits(bench.Effect, "insert")
    def announce(effect: Any) -> Any:
        return bench.queue(body=f"{effect.body} {effect.id is not None}")

    async def main() -> None:
        async with bench.sessions() as session:
            session.add(bench.Effect(body="emitted"))
            on_commit(session, lambda: bench.queue(body="on commit"))
            await session.commit()
            on_commit(session, lambda: bench.queue(body="rolled back"))
            session.add(bench.Effect(body="rolled back"))
            await session.flush()
            await session.rollback()

            def migrate(sync: Session) -> None:
                with without_emits(sync):
                    sync.add(bench.Effect(body="migrated"))

            await session.run_sync(migrate)
            await session.commit()
        scoped = async_scoped_session(bench.sessions, asyncio.current_task)
        on_commit(scoped, lambda: bench.queue(body="scoped"))
        await scoped.commit()
        await scoped.remove()

    bench.run(main)
    with Session(bench.engine) as session:
        bodies = sorted(session.scalars(select(bench.queue.body)))
    assert bodies == ["emitted True", "on commit", "scoped"]


def test_the_effect_and_the_ack_commit_together(bench: Bench) -> None:
    bodies = [str(number) for number in range(50)]
    bench.enqueue(*bodies)

    async def main() -> None:
        async with bench.working(bench.apply):
            await bench.settled(50)

    bench.run(main)
    assert bench.effects() == Counter(bodies)


def test_failing_handlers_are_rolled_back_and_retried_or_dead(bench: Bench) -> None:
    async def handle(message: Any, session: AsyncSession) -> None:
        await bench.apply(message, session)
        await session.flush()
        if message.body == "discard":
            raise Discard("no such user")
        if message.body == "always":
            raise ConnectionError("down")
        if message.epoch == 0 and message.body == "retry":
            raise Retry(0.1)
        if message.epoch < 2 and message.body == "twice":
            raise ConnectionError("not yet")

    bench.enqueue("discard", "always", "retry", "twice", "fine")

    async def main() -> None:
        async with bench.working(handle):
            await bench.settled(3, dead=2)

    bench.run(main)
    assert bench.effects() == Counter(["retry", "twice", "fine"])
    assert bench.reasons() == ["ConnectionError: down (attempt 3 of 3)", "no such user"]


def test_a_deadlock_is_no_failed_attempt(bench: Bench) -> None:
    if bench.engine.dialect.name == "sqlite":
        return  # It allows one writer at a time.
    epochs: list[int] = []

    async def lock_both(message: Any, session: AsyncSession) -> None:
        epochs.append(message.epoch)
        await session.execute(partner.lock(FIRST))
        await asyncio.to_thread(partner.request_first)
        await session.execute(partner.lock(SECOND))

    async def main() -> None:
        async with bench.working(lock_both, retry=RetryPolicy(max_attempts=1)):
            await bench.settled(1)

    bench.enqueue("again")
    with DeadlockPartner(bench.engine, bench.Effect) as partner:
        bench.run(main)
    assert epochs == [0, 0]


def test_a_long_handler_keeps_its_lease(bench: Bench) -> None:
    epochs: list[int] = []

    async def handle_slowly(message: Any, session: AsyncSession) -> None:
        epochs.append(message.epoch)
        await asyncio.sleep(7)  # A lease lasts 3 s, and its backoff adds 0.3 at most.
        await bench.apply(message, session)

    bench.enqueue("long")

    async def main() -> None:
        async with bench.working(handle_slowly):
            await bench.settled(1)

    bench.run(main)
    assert epochs == [0]


def test_a_lost_lease_keeps_the_transaction_from_committing(bench: Bench) -> None:
    bench.enqueue("stolen")

    async def main() -> None:
        started, lost = asyncio.Event(), asyncio.Event()

        async def work(message: Any, session: AsyncSession) -> None:
            await bench.apply(message, session)
            started.set()
            await lost.wait()

        async with bench.working(work, concurrency=1) as worker:
            await started.wait()
            async with bench.sessions() as session, session.begin():
                await session.execute(update(bench.queue).values(epoch=bench.queue.epoch + 1))
            while not worker._renewals._lost:
                await asyncio.sleep(0.02)
            lost.set()
            while worker._renewals._watched:
                await asyncio.sleep(0.02)

    bench.run(main)
    assert bench.effects() == Counter()
    assert bench.stats().acked == 0


def test_one_poisonous_message_does_not_hold_up_its_batch(bench: Bench) -> None:
    sizes: list[int] = []

    async def handle(messages: Any, session: AsyncSession) -> None:
        sizes.append(len(messages))
        for message in messages:
            await bench.apply(message, session)
            if message.body == "13":
                raise ValueError("unlucky")

    bodies = [str(number) for number in range(40)]
    bench.enqueue(*bodies)

    async def main() -> None:
        async with bench.working(handle, batch_size=20, concurrency=1):
            await bench.settled(39, dead=1)

    bench.run(main)
    assert max(sizes) == 20
    assert bench.effects() == Counter(body for body in bodies if body != "13")


def test_cancelling_a_worker_rolls_back_and_gives_everything_back(bench: Bench) -> None:
    bench.enqueue(*(str(number) for number in range(20)))

    async def main() -> None:
        started = asyncio.Semaphore(0)

        async def work(message: Any, session: AsyncSession) -> None:
            await bench.apply(message, session)
            await session.flush()
            started.release()
            await asyncio.sleep(60)

        # SQLite allows one writer.
        concurrency = 1 if bench.engine.dialect.name == "sqlite" else 3
        worker = AsyncWorker(bench.subscriber(), work, bench.sessions, concurrency=concurrency)
        running = asyncio.create_task(worker.run())
        for _ in range(concurrency):
            await started.acquire()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    bench.run(main)
    assert bench.effects() == Counter()
    assert bench.stats().ready == 20


def test_stopping_finishes_what_runs_and_cancels_what_hangs(bench: Bench) -> None:
    bench.enqueue("hangs", *(str(number) for number in range(10)))

    async def main() -> bool:
        hangs = asyncio.Event()

        async def work(message: Any, session: AsyncSession) -> None:
            if message.body == "hangs":
                hangs.set()
                await asyncio.sleep(60)
            await asyncio.sleep(0.05)
            await bench.apply(message, session)

        worker = AsyncWorker(
            bench.subscriber(), work, bench.sessions, concurrency=2, shutdown_timeout=0.5
        )
        running = asyncio.create_task(worker.run())
        await bench.settled(10)
        await asyncio.wait_for(hangs.wait(), 20)
        worker.request_stop()
        return await running

    assert bench.run(main) is False
    assert sum(bench.effects().values()) == 10
    assert bench.stats().ready == 1


@pytest.mark.parametrize("limited", [False, True], ids=["wait_for", "timeout"])
def test_a_query_that_a_handler_gives_up_is_a_failed_attempt(bench: Bench, limited: bool) -> None:
    """SQLAlchemy closes its connection, which is not lost as by a fault of the database."""
    handled: list[bool] = []
    query = "SELECT SLEEP(5)"
    if bench.engine.dialect.name == "sqlite":
        rows = "SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 2000000"
        query = f"WITH RECURSIVE r AS ({rows}) SELECT count(*) FROM r"  # noqa: S608

    async def work(_message: Any, session: AsyncSession) -> None:
        handled.append(True)
        if limited:
            async with asyncio.timeout(0.05):
                await session.execute(text(query))
        else:
            await asyncio.wait_for(session.execute(text(query)), 0.05)

    bench.enqueue("slow")

    async def main() -> None:
        async with bench.working(work, concurrency=1, retry=RetryPolicy(max_attempts=1)):
            await bench.settled(0, dead=1)

    bench.run(main)
    assert len(handled) == 1
    [reason] = bench.reasons()
    assert reason.startswith("TimeoutError")


def test_a_handler_that_cancels_its_own_task_affects_its_message_alone(bench: Bench) -> None:
    """So do libraries whose timeouts cancel the task, without ``uncancel()``."""

    async def work(message: Any, session: AsyncSession) -> None:
        if message.body != "fine":
            own = asyncio.current_task()
            assert own is not None
            own.cancel()
        if message.body == "suppresses":
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        await bench.apply(message, session)
        await session.flush()

    async def main() -> None:
        async with bench.working(work, concurrency=1):
            await bench.enqueue_beside("cancels", "suppresses")
            await bench.settled(1, dead=1)
            await bench.enqueue_beside("fine")
            await bench.settled(2, dead=1)

    bench.run(main)
    assert bench.effects() == Counter(["suppresses", "fine"])
    [reason] = bench.reasons()
    assert reason.startswith("CancelledError")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Worker-0", "other code has cancelled a task of <AsyncWorker"),
        ("Subscriber(", "the subscriber of .* is not open"),
    ],
)
def test_a_task_of_a_worker_that_others_cancel_ends_it_with_an_error(
    bench: Bench, caplog: pytest.LogCaptureFixture, name: str, text: str
) -> None:
    async def main() -> None:
        async with AsyncWorker(bench.subscriber(), bench.apply, bench.sessions, concurrency=1):
            await bench.enqueue_beside("one")
            await bench.settled(1)
            [task] = [one for one in asyncio.all_tasks() if one.get_name().startswith(name)]
            task.cancel()
            while "the worker ends" not in caplog.text:
                await asyncio.sleep(0.01)

    with pytest.raises(MessageQueueError, match=text):
        bench.run(main)


async def stop_by_a_fault(subscriber: AsyncSubscriber[Any]) -> None:
    """Make a subscriber fail with an error that no new connection can mend."""

    def poll(_limit: int) -> None:
        raise LookupError("a fault")

    subscriber._loop._transport.poll = poll  # type: ignore[union-attr,method-assign]
    with pytest.raises(LookupError):
        await subscriber.get(20)


def test_leaving_a_worker_raises_the_error_that_stopped_it(bench: Bench) -> None:
    subscriber = bench.subscriber()

    async def main() -> None:
        async with AsyncWorker(subscriber, bench.apply, bench.sessions):
            await stop_by_a_fault(subscriber)

    with pytest.raises(LookupError, match="a fault"):
        bench.run(main)
    assert not subscriber.is_open


def test_an_error_raised_in_the_block_of_a_worker_takes_precedence(bench: Bench) -> None:
    subscriber = bench.subscriber()

    async def main() -> None:
        async with AsyncWorker(subscriber, bench.apply, bench.sessions):
            await stop_by_a_fault(subscriber)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.run(main)
    assert not subscriber.is_open


def test_a_signal_stops_a_worker(bench: Bench) -> None:
    async def work(message: Any, session: AsyncSession) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        await bench.apply(message, session)

    bench.enqueue("one")
    worker = AsyncWorker(bench.subscriber(), work, bench.sessions)
    assert bench.run(worker.run) is True
    assert bench.effects() == Counter(["one"])


def test_what_makes_no_session_is_refused(bench: Bench) -> None:
    @asynccontextmanager
    async def managed() -> AsyncIterator[AsyncSession]:
        async with bench.sessions() as session:
            yield session

    async def main() -> None:
        for factory, made in (
            (sessionmaker(), "Session object"),
            (bench.sessions.begin, "_AsyncSessionContextManager"),
            (managed, "_AsyncGeneratorContextManager"),
        ):
            worker: Any = AsyncWorker(bench.subscriber(), bench.apply, factory)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgumentType, match=f"session_factory=.* it made .*{made}"):
                await worker.start()

    bench.run(main)


def test_wrong_arguments_are_refused(bench: Bench) -> None:
    with pytest.raises(InvalidArgument, match="asyncio driver, such as"):
        AsyncSubscriber(bench.queue, bench.engine.url)
    with pytest.raises(InvalidArgumentType, match="expected a URL or an AsyncEngine"):
        AsyncSubscriber(bench.queue, bench.engine)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="use AsyncSubscriber"):
        Subscriber(bench.queue, bench.url)
    with pytest.raises(InvalidArgument, match="max_concurrency=0"):
        bench.subscriber(max_concurrency=0)
    subscriber = bench.subscriber()
    with pytest.raises(InvalidArgumentType, match="subscriber='no'"):
        AsyncWorker("no", bench.apply, bench.sessions)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="concurrency=0"):
        AsyncWorker(subscriber, bench.apply, bench.sessions, concurrency=0)
    with pytest.raises(InvalidArgumentType, match="retry=3"):
        AsyncWorker(subscriber, bench.apply, bench.sessions, retry=3)  # type: ignore[arg-type]
