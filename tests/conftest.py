"""Start the real databases once for the whole run, and provide each test with a queue on one.

The controlling process starts and stops the databases; the workers of a parallel run read their
URLs from the environment variable ``URLS``. With ``VITESS_URL`` an existing Vitess is used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import Engine, Table, create_engine, event
from sqlalchemy.orm import DeclarativeBase

from sqla_vitess_messages import MessageQueueMixin, QueueOptions
from sqla_vitess_messages.table import ticks
from sqla_vitess_messages.table.pauses import PAUSES
from tests import selection
from tests.backends import BACKENDS, Backend, make_queue_class, make_subscriber, make_worker
from tests.browser import missing_browser
from tests.servers import URLS, server_url
from tools.vitess import Cluster, MariaDB, MissingTool, MySQL, VtCombo, install, temporary

_running: list[Any] = []
_folder = ""


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    if line := missing_browser():
        _print(session, f"SKIPPED {line}")
    if URLS in os.environ:
        return
    if session.config.option.collectonly:
        return
    urls, missing = _start_databases()
    _trust_no_public_authority()
    os.environ[URLS] = json.dumps(urls)
    for name, url in urls.items():
        if not name.endswith("grpc"):
            _create_shared_tables(url)
    if missing:
        line = f"tests that need Vitess or MySQL: this machine lacks {missing}"
        if os.environ.get("CI"):
            pytest.exit(line, returncode=1)
        _print(session, f"SKIPPED {line}")


def _print(session: pytest.Session, line: str) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(line, yellow=True)


def _start_databases() -> tuple[dict[str, str], str]:
    """Return the URLs of the started servers, and a line that names a missing program."""
    global _folder
    _folder = tempfile.mkdtemp(prefix="sqla-vitess-messages-")
    Path(_folder).chmod(0o755)
    try:
        programs = install()
        mysql = MySQL("mysql", Path(_folder), programs, ["messages"])
        mariadb = MariaDB("mariadb", Path(_folder), programs)
        servers: list[Any] = [mysql, mariadb]
        if not (named := os.environ.get("VITESS_URL")):
            cluster = Cluster(Path(_folder) / "cluster", replicas=False)
            vtcombo = VtCombo(Path(_folder) / "dev")
            servers += [cluster, vtcombo]
        _running.extend(servers)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.start(), servers))
        mysql.wait()
        mariadb.wait()
        plain = {"mysql": mysql.url, "mariadb": mariadb.url}
        if named:
            return {**plain, "vtgate": named}, ""
    except MissingTool as error:
        return {}, str(error).splitlines()[0]
    return {
        **plain,
        "vtgate": cluster.url(),
        "vtgate-fast": cluster.url(gate="vtgate-fast"),
        "sharded": cluster.url("sharded"),
        "dev": vtcombo.url(),
        "vtgate grpc": cluster.grpc(),
        "sharded grpc": cluster.grpc(),
        "dev grpc": vtcombo.grpc(),
    }, ""


def _trust_no_public_authority() -> None:
    """Make up the only authority: PyMySQL loads all of them for each connection, for 20 ms."""
    file = Path(_folder) / "authority.pem"
    trustme.CA().cert_pem.write_to_path(file)
    os.environ["SSL_CERT_FILE"] = str(file)


def _create_shared_tables(url: str) -> None:
    """Create the tables that tests which run at the same time on one server have in common."""
    engine = create_engine(url)
    pausable = make_queue_class(QueueOptions(pausable=True))
    for table in (ticks.TICKS, pausable.metadata.tables[PAUSES]):
        table.create(engine, checkfirst=True)
    engine.dispose()


@pytest.hookimpl(tryfirst=True)  # Before the marks are used to select tests.
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselected = selection.mark(items)
    config.hook.pytest_deselected(items=deselected)
    left_out = set(deselected)
    items[:] = [item for item in items if item not in left_out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda server: server.stop(), _running))
    if _folder:
        shutil.rmtree(_folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_periodic_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the periodic messages of other tests, which add a table to all metadata."""
    monkeypatch.setattr(ticks, "_registry", ticks._Registry())


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each database with each of its transports, one after the other."""
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def url(backend: Backend, tmp_path: Path) -> str:
    """The URL of the test's database."""
    if backend.server is None:
        return f"sqlite:///{tmp_path}/test.db"
    return server_url(backend.server)


@pytest.fixture
def engine(url: str, backend: Backend) -> Iterator[Engine]:
    """The application's engine, which no subscriber uses."""
    # SQLite's writers wait for one another, for a long time on a busy machine.
    arguments = {"timeout": 30} if backend.server is None else {}
    engine = create_engine(url, connect_args=arguments)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wal(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")

    yield engine
    engine.dispose()


SHARED_TABLES = (ticks.TICKS.name, PAUSES)
"""The tables that no test may drop on a server."""


@pytest.fixture
def make_queue(engine: Engine, backend: Backend) -> Iterator[Callable[..., type[Any]]]:
    """Return a factory of queues, with the given options and payload columns, and their tables."""
    made: list[type[MessageQueueMixin]] = []

    def make(
        base: type[DeclarativeBase] | None = None,
        attributes: dict[str, Any] | None = None,
        **options: Any,
    ) -> type[Any]:
        options = {"ack_wait": 10, "poller_interval": 0.2, "min_backoff": 0.2} | options
        if backend.server == "sharded":
            options = {"shard_by": "tenant", "vindex": "hash"} | options
        model = make_queue_class(QueueOptions(**options), base=base, attributes=attributes)
        model.metadata.create_all(engine)
        made.append(model)
        return model

    yield make
    for model in made:
        tables = [
            table for table in model.metadata.sorted_tables if table.name not in SHARED_TABLES
        ]
        model.metadata.drop_all(engine, tables)


@pytest.fixture
def ticks_table(engine: Engine) -> Table:
    """The table of last ticks, which stays: other tests on the same server use it, too."""
    ticks.TICKS.create(engine, checkfirst=True)
    return ticks.TICKS


@pytest.fixture
def queue(make_queue: Callable[..., type[Any]]) -> type[Any]:
    """A queue whose leases last about 10 s."""
    return make_queue()


@pytest.fixture
def subscribe(url: str, backend: Backend) -> Iterator[Callable[..., Any]]:
    """Return a factory of open subscribers, which are closed at the end of the test."""
    opened: list[Any] = []

    def make(model: type[Any], bind: Any = None, **options: Any) -> Any:
        subscriber = make_subscriber(backend, model, url if bind is None else bind, **options)
        subscriber.open()
        opened.append(subscriber)
        return subscriber

    yield make
    for subscriber in opened:
        with suppress(Exception):
            subscriber.close()


@pytest.fixture
def work(engine: Engine, backend: Backend) -> Iterator[Callable[..., Any]]:
    """Return a function that starts a worker, of which no thread or task may end by itself."""
    started: list[Any] = []

    def start(
        model: type[Any], handler: Callable[..., Any], concurrency: int = 2, **options: Any
    ) -> Any:
        worker = make_worker(backend, model, engine, handler, concurrency=concurrency, **options)
        worker.start()
        started.append((worker, concurrency))
        return worker

    yield start
    alive = [worker.running == concurrency for worker, concurrency in started]
    for worker, _concurrency in started:
        worker.stop()
    assert all(alive), "a thread or a task of a worker has ended"


@pytest.fixture(scope="module")
def isolated_vitess() -> Iterator[VtCombo]:
    """A Vitess that only this module uses: its tests may stop the schema reloading."""
    server_url("vtgate")
    with temporary(VtCombo) as vtcombo:
        yield vtcombo
