"""The examples run as their README describes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from tests.backends import async_url, eventually
from tests.servers import server_url
from tools.vitess.process import free_port, listens

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(params=[None, "vtgate"], ids=["sqlite", "vitess"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param is None:
        return f"sqlite:///{tmp_path}/example.db"
    return server_url(request.param)


def async_database(database: str) -> str:
    driver = "aiosqlite" if database.startswith("sqlite") else "asyncmy"
    return async_url(database, driver).render_as_string(hide_password=False)


@pytest.fixture
def load(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports an example; its tables are dropped at the end of the test."""
    loaded: list[Any] = []

    def load(name: str) -> ModuleType:
        is_async = name == "fastapi_shop"
        monkeypatch.setenv("DATABASE_URL", async_database(database) if is_async else database)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        loaded.append(module)
        return module

    yield load
    for module in loaded:
        engine = create_engine(database)
        module.Base.metadata.drop_all(engine)
        engine.dispose()
        if isinstance(getattr(module, "engine", None), Engine):
            module.engine.dispose()


def test_script(load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert load("script").main() == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "urgent.jpg at 100 pixels"
    assert sorted(lines[1:]) == ["ada.jpg at 200 pixels", "bob.jpg at 200 pixels"]


def test_flask_with_a_worker_process(load: Callable[[str], Any], database: str) -> None:
    client = load("flask_shop").app.test_client()
    for item in ("tea", "rice"):
        assert client.post("/orders", json={"item": item}).status_code == 201
    command = [sys.executable, "-m", "sqla_vitess_messages", "worker", "flask_shop:worker"]
    worker = subprocess.Popen(command, cwd=EXAMPLES, env={**os.environ, "DATABASE_URL": database})
    try:
        eventually(lambda: client.get("/orders/shipped").json["shipped"] == 2, within=30)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
    finally:
        worker.kill()
        worker.wait()


def test_fastapi_with_a_worker_in_its_loop(load: Callable[[str], Any], database: str) -> None:
    load("fastapi_shop")  # So that its tables are dropped at the end.
    bind = async_database(database)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "fastapi_shop:app", "--port", str(port)]
    server = subprocess.Popen(command, cwd=EXAMPLES, env={**os.environ, "DATABASE_URL": bind})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            eventually(lambda: listens(port), within=30)
            for name in ("ada", "bob"):
                assert client.post("/users", json={"name": name}).status_code == 201
            eventually(lambda: client.get("/users/greeted").json()["greeted"] == 2, within=30)
        server.send_signal(signal.SIGTERM)
        server.wait(15)  # The worker leaves signals to the server.
    finally:
        server.kill()
        server.wait()


class Receiver:
    """An HTTP server that accepts each event at the second attempt, and some never."""

    def __init__(self) -> None:
        self.accepted: dict[str, Any] = {}
        self.requests = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.requests += 1
                self.send_response(receiver.answer(self.headers["Idempotency-Key"], body))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._seen: set[str] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def answer(self, key: str, body: Any) -> int:
        if body["event"] == "wrong":
            return 422
        if key not in self._seen:
            self._seen.add(key)
            return 503
        self.accepted[key] = body
        return 200

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_an_outbox_to_an_http_endpoint(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver()
    port = receiver.server.server_address[1]
    monkeypatch.setenv("RECEIVER_URL", f"http://127.0.0.1:{port}/events")
    outbox = load("http_outbox")
    try:
        with Session(outbox.engine) as session, session.begin():
            for number in range(20):
                session.add(outbox.Announcement(event="paid", data={"order": number}))
            session.add(outbox.Announcement(event="wrong", data={}))
        with outbox.worker:

            def is_done() -> bool:
                with Session(outbox.engine) as session:
                    stats = outbox.Announcement.stats(session)
                return (stats.acked, stats.dead) == (20, 1)

            eventually(is_done, within=30)
        orders = [body["data"]["order"] for body in receiver.accepted.values()]
        assert sorted(orders) == list(range(20))
        assert receiver.requests >= 41
    finally:
        outbox.client.close()
        receiver.close()
