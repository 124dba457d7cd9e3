"""Start the real databases once for the whole run, and give each test its queue on one of them.

The databases belong to the controlling process; the workers of a parallel run find their URLs in
``BACKENDS``. ``VITESS_URL`` names a Vitess to use instead of starting one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import DeclarativeBase

from sqla_vitess_messages import MessageQueueMixin, QueueOptions
from tests.backends import BACKENDS, Backend, make_queue_class, make_subscriber
from tests.servers import URLS, server_url
from tools.vitess import Cluster, Dev, MariaDB, MissingTool, MySQL, install, temporary

_running: list[Any] = []
_folder = ""


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or URLS in os.environ:
        return
    if session.config.option.collectonly:
        return
    urls, missing = _start_databases()
    os.environ[URLS] = json.dumps(urls)
    if missing:
        line = f"without Vitess and MySQL: this machine lacks {missing}"
        if os.environ.get("CI"):
            pytest.exit(line, returncode=1)
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"SKIPPED {line}", yellow=True)


def _start_databases() -> tuple[dict[str, str], str]:
    """Return the URLs of what runs, and in one line what is missing."""
    global _folder
    _folder = tempfile.mkdtemp(prefix="sqla-vitess-messages-")
    Path(_folder).chmod(0o755)
    try:
        parts = install()
        mysql = MySQL("mysql", Path(_folder), parts, ["messages"])
        mariadb = MariaDB("mariadb", Path(_folder), parts)
        _running.extend([mysql, mariadb])
        mysql.start()
        mariadb.start()
        mysql.wait()
        mariadb.wait()
        plain = {"mysql": mysql.url, "mariadb": mariadb.url}
        if named := os.environ.get("VITESS_URL"):
            return {**plain, "vtgate": named}, ""
        cluster = Cluster(Path(_folder) / "cluster")
        dev = Dev(Path(_folder) / "dev")
        _running.extend([cluster, dev])
        cluster.start()
        dev.start()
    except MissingTool as error:
        return {}, str(error).splitlines()[0]
    return {
        **plain,
        "vtgate": cluster.url(),
        "vtgate-fast": cluster.url(gate="vtgate-fast"),
        "sharded": cluster.url("sharded"),
        "dev": dev.url(),
        "vtgate grpc": cluster.grpc(),
        "sharded grpc": cluster.grpc(),
        "dev grpc": dev.grpc(),
    }, ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a backend would only repeat: its driver makes a difference to receivers."""
    repeated = [item for item in items if _repeats(item)]
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if item not in set(repeated)]


def _repeats(item: pytest.Item) -> bool:
    backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
    uses = getattr(item, "fixturenames", ())
    return bool(backend and backend.driver and "subscribe" not in uses)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    while _running:
        _running.pop().stop()
    if _folder:
        shutil.rmtree(_folder, ignore_errors=True)


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
    """The application's engine, apart from any subscriber's."""
    # SQLite's writers wait for one another, and on a busy machine for long.
    patience = {"timeout": 30} if backend.server is None else {}
    engine = create_engine(url, connect_args=patience)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wal(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")

    yield engine
    engine.dispose()


@pytest.fixture
def make_queue(engine: Engine, backend: Backend) -> Iterator[Callable[..., type[Any]]]:
    """Make a queue with options and payload of its own, and its table."""
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
        model.metadata.drop_all(engine)


@pytest.fixture
def queue(make_queue: Callable[..., type[Any]]) -> type[Any]:
    """A queue whose messages come back after about 10 s."""
    return make_queue()


@pytest.fixture
def subscribe(url: str, backend: Backend) -> Iterator[Callable[..., Any]]:
    """Open subscribers, closed at the test's end."""
    opened: list[Any] = []

    def make(model: type[Any], **options: Any) -> Any:
        subscriber = make_subscriber(backend, model, url, **options)
        subscriber.open()
        opened.append(subscriber)
        return subscriber

    yield make
    for subscriber in opened:
        with suppress(Exception):
            subscriber.close()


@pytest.fixture(scope="module")
def apart() -> Iterator[Dev]:
    """A Vitess of the test's own, whose schema reloading it may stop."""
    server_url("vtgate")
    with temporary(Dev) as dev:
        yield dev
