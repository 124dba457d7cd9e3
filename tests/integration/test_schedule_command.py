"""``sqla-vitess-messages schedule``, in processes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Table, delete, select

from tests.backends import BACKENDS, async_url, eventually

pytestmark = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in ("sqlite", "vitess")],
    indirect=True,
    ids=lambda backend: backend.name,
)

MODULE = """
from datetime import timedelta
from sqlalchemy import String, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqla_vitess_messages import MessageQueueMixin, Periodic, Scheduler
from sqla_vitess_messages.aio import AsyncScheduler

class Base(DeclarativeBase):
    pass

class Poll(MessageQueueMixin, Base):
    __tablename__ = "{queue}"
    body: Mapped[str] = mapped_column(String(255))

poll = Periodic("{queue}", timedelta(seconds=0.5), lambda tick: Poll(body=tick.isoformat()))
nightly = Periodic("{queue} nightly", "0 3 * * *", lambda tick: None, timezone="Europe/Berlin")

def make():
    return Scheduler(sessionmaker(create_engine({url!r})), [poll, nightly])

scheduler = make()
in_event_loop = AsyncScheduler(async_sessionmaker(create_async_engine({async_url!r})), [poll])
"""


class Shell:
    """A module with schedulers, and the commands that run them."""

    def __init__(self, folder: Path, engine: Engine, url: str, queue: type[Any]) -> None:
        self._engine = engine
        self._queue = queue
        self._folder = folder
        self.name: str = queue.__tablename__
        self._running: list[subprocess.Popen[str]] = []
        driver = "aiosqlite" if url.startswith("sqlite") else "asyncmy"
        source = MODULE.format(
            queue=self.name,
            url=url,
            async_url=async_url(url, driver).render_as_string(hide_password=False),
        )
        (folder / "jobs.py").write_text(source)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        running = subprocess.Popen(
            [sys.executable, "-m", "sqla_vitess_messages", "schedule", *arguments],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.append(running)
        return running

    def bodies(self) -> list[str]:
        with self._engine.connect() as connection:
            return sorted(connection.scalars(select(self._queue.body)))

    def close(self) -> None:
        for running in self._running:
            if running.poll() is None:
                running.kill()
            running.communicate()


@pytest.fixture
def shell(
    tmp_path: Path,
    engine: Engine,
    url: str,
    make_queue: Callable[..., type[Any]],
    ticks_table: Table,
) -> Iterator[Shell]:
    shell = Shell(tmp_path, engine, url, make_queue())
    yield shell
    shell.close()
    with engine.begin() as connection:
        connection.execute(delete(ticks_table).where(ticks_table.c.name.startswith(shell.name)))


def test_processes_schedule_until_a_signal(shell: Shell) -> None:
    targets = ("jobs:scheduler", "jobs:make", "jobs:in_event_loop")
    running = [shell.start(target) for target in targets]
    eventually(lambda: len(shell.bodies()) >= 8, within=90)
    for process, number in zip(
        running, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True
    ):
        process.send_signal(number)
    for process in running:
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 0, text
        assert "scheduling 20" in text
    times = [datetime.fromisoformat(body) for body in shell.bodies()]
    assert {b - a for a, b in pairwise(times)} == {timedelta(seconds=0.5)}


def test_it_prints_the_coming_ticks(shell: Shell) -> None:
    text, _ = shell.start("jobs:scheduler", "--next", "3").communicate(timeout=60)
    lines = text.splitlines()
    assert len(lines) == 6, text
    assert lines == sorted(lines, key=lambda line: datetime.fromisoformat(line.split("  ")[0]))
    assert lines[-1].split("  ")[1] == f"{shell.name} nightly"
    assert datetime.fromisoformat(lines[-1].split("  ")[0]).hour == 3


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("jobs:nothing", "has no 'nothing'"),
        ("jobs:Base", "is no Scheduler"),
        ("nowhere:scheduler", "there is no module"),
    ],
)
def test_a_wrong_target_is_one_line(shell: Shell, target: str, text: str) -> None:
    process = shell.start(target)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text in printed
    assert "Traceback" not in printed


def test_a_missing_table_is_one_line(shell: Shell, tmp_path: Path, url: str) -> None:
    if not url.startswith("sqlite"):
        pytest.skip("others use the table on this server")
    source = (tmp_path / "jobs.py").read_text()
    (tmp_path / "jobs.py").write_text(source.replace("test.db", "empty.db"))
    process = shell.start("jobs:scheduler")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Error: the database has no table 'message_queue_ticks'" in printed
