"""Processes that fork while a subscriber is open, as pre-forking servers and multiprocessing do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_vitess_messages import MessageQueueError, Subscriber, SubscriberClosed, Worker
from sqla_vitess_messages.events import Reconnecting
from sqla_vitess_messages.rows import local_notify
from tests.async_adapter import AsyncSubscriberAdapter
from tests.backends import BACKENDS, Backend, ack, enqueue, row
from tests.servers import server_url

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # Python's own, from version 3.12 on: the parent has threads.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

Subscribe = Callable[..., Any]

FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def backends(*names: str) -> pytest.MarkDecorator:
    chosen = [backend for backend in BACKENDS if backend.name in names]
    return pytest.mark.parametrize("backend", chosen, indirect=True, ids=lambda one: one.name)


def in_child(call: Callable[[], object], within: int = 30) -> None:
    """Call a function in a process that is forked, and check that it returns in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(within)
            call()
            code = 0
        except BaseException:  # noqa: BLE001  # The exit code tells.
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "-14: the child was blocked"


@contextmanager
def held_by_a_thread(*locks: Any) -> Iterator[None]:
    """Hold locks in a thread, which no child has."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def try_everything(subscriber: Any, message: Any) -> None:
    """Check that what the parent's threads would do is refused, and closing does nothing."""
    calls: list[Callable[[], object]]
    if isinstance(subscriber, AsyncSubscriberAdapter):
        own = subscriber._subscriber
        calls = [
            lambda: asyncio.run(own.get()),
            lambda: asyncio.run(own.get_many(2)),
            lambda: asyncio.run(anext(own.__aiter__())),
            lambda: asyncio.run(own.extend([message], 5)),
            lambda: asyncio.run(own.flush()),
        ]
    else:
        own = subscriber
        calls = [
            own.get,
            lambda: own.get_many(2),
            lambda: next(iter(own)),
            lambda: own.extend([message], 5),
            own.flush,
            lambda: own.ack(message),
        ]
    assert not own.is_open
    for call in calls:
        with pytest.raises(SubscriberClosed, match="before this process was forked"):
            call()
    own.stop_receiving()
    asyncio.run(own.close()) if own is not subscriber else own.close()


def test_a_child_is_refused_what_its_parent_receives(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(queue(body=str(number)) for number in range(4)))
    events: list[Any] = []
    subscriber = subscribe(queue, on_event=events.append)
    first = subscriber.get(20)
    for _ in range(2):
        in_child(lambda: try_everything(subscriber, first))
    received = [first, *(subscriber.get(20) for _ in range(3))]
    assert sorted(message.body for message in received) == ["0", "1", "2", "3"]
    assert {message.epoch for message in received} == {0}
    ack(engine, *received)
    enqueue(engine, queue())
    ack(engine, subscriber.get(20))
    assert not [event for event in events if isinstance(event, Reconnecting)]


@backends("mysql", "mariadb", "vitess", "vitess-sharded", "vitess-stream")
def test_a_child_that_opens_a_subscriber_receives_messages_of_its_own(
    engine: Engine, url: str, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, *(queue() for _ in range(4)))
    subscriber = subscribe(queue, max_concurrency=4)
    leased = [subscriber.get(20)]
    enqueue(engine, *(queue() for _ in range(2)))  # For which the parent has no place.

    def receive() -> None:
        own = create_engine(url)
        with subscriber:
            ack(own, subscriber.get(20), subscriber.get(20))
        with pytest.raises(SubscriberClosed, match="is not open"):
            subscriber.get(0)

    in_child(receive)
    leased += [subscriber.get(20) for _ in range(3)]
    assert {message.epoch for message in leased} == {0}
    ack(engine, *leased)
    assert subscriber.get(0.2) is None
    with Session(engine) as session:
        assert queue.stats(session).acked == 6


@backends("mysql", "vitess-stream", "vitess-grpc")
def test_no_lock_that_a_thread_held_blocks_a_child(
    engine: Engine, url: str, queue: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(queue)
    enqueue(engine, queue(), queue())
    acked, failed = subscriber.get(20), subscriber.get(20)
    added = queue()

    def work() -> None:
        own = create_engine(url)
        try_everything(subscriber, acked)
        with Session(own) as session, session.begin():
            session.add(added)  # Its commit notifies the subscribers of this process.
        with Session(own) as session, session.begin():
            acked.ack(session)
            failed.fail(session)

    time.sleep(0.5)  # While the stream connects, another thread may hold a lock of OpenSSL.
    locks = subscriber._lock, subscriber._loop.batcher._lock, local_notify._listeners.lock
    with held_by_a_thread(*locks):
        in_child(work)
    assert row(engine, acked).time_acked is not None
    assert row(engine, failed).time_next == 2**63 - 1
    assert row(engine, added) is not None


@backends("vitess-grpc", "vitess-grpc-asyncio")
def test_grpc_is_refused_in_a_child_of_a_process_that_used_it(
    backend: Backend, engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    enqueue(engine, queue())
    subscriber = subscribe(queue)
    ack(engine, subscriber.get(20))

    def use() -> None:
        is_async = isinstance(subscriber, AsyncSubscriberAdapter)
        with pytest.raises(MessageQueueError, match="forked after gRPC had been used"):
            asyncio.run(subscriber._subscriber.open()) if is_async else subscriber.open()
        own = create_engine(f"vitess+grpc://user@{server_url(f'{backend.server} grpc')}/main")
        with pytest.raises(MessageQueueError, match="'spawn'"), own.connect():
            pass

    in_child(use)


@backends("sqlite", "mysql")
def test_a_child_of_a_process_with_a_worker_has_a_worker_that_is_stopped(
    engine: Engine, url: str, queue: type[Any]
) -> None:
    handled = threading.Semaphore(0)
    worker: Worker[Any] = Worker(
        Subscriber(queue, url),
        lambda _message, _session: handled.release(),
        sessionmaker(engine),
        shutdown_timeout=60,
    )
    with worker, held_by_a_thread(worker._renewals._lock):

        def stop() -> None:
            worker.request_stop()
            assert worker.stop()

        in_child(stop)
        in_child(worker._subscriber.close)
    with worker:
        enqueue(engine, queue())
        assert handled.acquire(timeout=20)


PREFORK = """
import os, sys, warnings
sys.path.insert(0, {root!r})
warnings.filterwarnings("error")
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
from sqlalchemy import create_engine
from sqla_vitess_messages import QueueOptions
from tests.backends import BACKENDS, ack, enqueue, make_queue_class, make_subscriber
from sqla_vitess_messages.events import Reconnecting

backend = next(one for one in BACKENDS if one.name == {backend!r})
named = dict(__tablename__={table!r})
queue = make_queue_class(QueueOptions(**{options!r}), attributes=named)
engine = create_engine({url!r})
events = []
subscriber = make_subscriber(backend, queue, {url!r}, on_event=events.append)
subscriber.open()
enqueue(engine, queue())
first = subscriber.get(20)
assert first is not None
engine.dispose()
for _ in range(2):
    child = os.fork()
    if child == 0:
        sys.exit(0)  # All of Python's cleaning up.
    _pid, status = os.waitpid(child, 0)
    assert status == 0, status
ack(engine, first)
for _ in range(3):
    enqueue(engine, queue())
    ack(engine, subscriber.get(20))
assert not [event for event in events if isinstance(event, Reconnecting)], events
subscriber.close()
engine.dispose()
"""


@pytest.mark.usefixtures("subscribe")
def test_a_child_that_exits_leaves_the_parents_connections_alone(
    backend: Backend, url: str, queue: type[Any], tmp_path: Path
) -> None:
    options = {"ack_wait": 10, "poller_interval": 0.2, "min_backoff": 0.2}
    if backend.server == "sharded":
        options |= {"shard_by": "tenant", "vindex": "hash"}
    script = tmp_path / "prefork.py"
    script.write_text(
        PREFORK.format(
            root=str(Path(__file__).parents[2]),
            backend=backend.name,
            url=url,
            options=options,
            table=queue.__tablename__,
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert not {"Traceback", "Exception", "Warning"} & set(re.findall(r"\w+", done.stderr))


@pytest.mark.parametrize("module", ["dialect", "dbapi", "rpc"])
def test_grpc_is_imported_with_its_own_handling_of_forks_turned_off(module: str) -> None:
    code = (
        f"import os; from sqla_vitess_messages.vitess.grpc import {module};"
        f"import sys; assert ('grpc' in sys.modules) == ('{FORK_SUPPORT}' in os.environ)"
    )
    environment = {name: os.environ[name] for name in os.environ if name != FORK_SUPPORT}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
