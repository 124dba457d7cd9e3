"""``sqla-vitess-messages worker``, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import random_id
from tests.backends import BACKENDS, enqueue, eventually

pytestmark = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in ("sqlite", "vitess")],
    indirect=True,
    ids=lambda backend: backend.name,
)

MODULE = """
import os, time
from sqlalchemy import BigInteger, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqla_vitess_messages import MessageQueueMixin, QueueOptions, Subscriber, Worker, random_id

class Base(DeclarativeBase):
    pass

class Task(MessageQueueMixin, Base):
    __tablename__ = "{queue}"
    __queue__ = QueueOptions(ack_wait=10, poller_interval=0.2, min_backoff=0.2)
    body: Mapped[str] = mapped_column(String(100))

class Effect(Base):
    __tablename__ = "{effect}"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
    body: Mapped[str] = mapped_column(String(100))

def handle(message, session):
    session.add(Effect(body=f"{{message.body}} by {{os.getpid()}}"))
    session.flush() if "slow" not in message.body else time.sleep({seconds})

def make():
    sessions = sessionmaker(create_engine({url!r}))
    return Worker(Subscriber(Task, {url!r}), handle, sessions, concurrency=2)

worker = make()
"""


class Shell:
    """A module with a worker, and the commands that run it."""

    def __init__(
        self, folder: Path, engine: Engine, url: str, make_queue: Callable[..., type[Any]]
    ) -> None:
        class Base(DeclarativeBase):
            pass

        self.queue = make_queue(Base, poller_interval=0.2)
        name = self.queue.__tablename__

        class Effect(Base):
            __tablename__ = f"effect_of_{name}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
            body: Mapped[str] = mapped_column(String(100))

        self.Effect = Effect
        Base.metadata.create_all(engine)
        self.engine = engine
        self.folder = folder
        self.log = folder / "log.txt"
        self._values = {"queue": name, "effect": Effect.__tablename__, "url": url}
        self._running: list[subprocess.Popen[str]] = []
        self.write(seconds=1.5)

    def write(self, seconds: float, more: str = "") -> None:
        (self.folder / "tasks.py").write_text(MODULE.format(**self._values, seconds=seconds) + more)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sqla_vitess_messages", "worker", *arguments]
        with self.log.open("a") as log:
            # A process group of its own, so that no signal of the test run reaches its children.
            running = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, text=True, start_new_session=True
            )
        self._running.append(running)
        return running

    def enqueue(self, *bodies: str) -> None:
        enqueue(self.engine, *(self.queue(body=body) for body in bodies))

    def effects(self) -> list[str]:
        with Session(self.engine) as session:
            return sorted(session.scalars(select(self.Effect.body)))

    def stats(self) -> Any:
        with Session(self.engine) as session:
            return self.queue.stats(session)

    def close(self) -> None:
        for running in self._running:
            if running.poll() is None:
                running.kill()
                running.wait()


@pytest.fixture
def shell(
    tmp_path: Path, engine: Engine, url: str, make_queue: Callable[..., type[Any]]
) -> Iterator[Shell]:
    shell = Shell(tmp_path, engine, url, make_queue)
    yield shell
    shell.close()


def test_a_signal_lets_it_finish_and_release_the_rest(shell: Shell) -> None:
    shell.enqueue(*["slow"] * 10)
    running = shell.start("tasks:worker", "--concurrency", "3")
    eventually(lambda: shell.stats().leased == 10, within=30)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()
    stats = shell.stats()
    assert (stats.acked, stats.ready, stats.leased) == (3, 7, 0)
    assert len(shell.effects()) == 3


def test_a_second_signal_ends_it_at_once(shell: Shell) -> None:
    shell.write(seconds=60)
    shell.enqueue("slow", "slow", "slow")
    running = shell.start("tasks:make")  # A function that returns a worker.
    eventually(lambda: shell.stats().leased == 3, within=30)
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 1, shell.log.read_text()
    assert shell.stats().acked == 0
    assert shell.effects() == []


def test_processes_that_die_are_replaced_and_all_end_together(shell: Shell) -> None:
    shell.enqueue(*(f"slow {number}" for number in range(4)))
    running = shell.start("tasks:worker", "--processes", "2")
    by = eventually(lambda: {int(body.split()[-1]) for body in shell.effects()}, within=40)
    os.kill(min(by), signal.SIGKILL)
    eventually(lambda: "starting another" in shell.log.read_text(), within=20)
    # The messages of the dead process are redelivered, and others are handled meanwhile.
    shell.enqueue(*(f"quick {number}" for number in range(20)))
    eventually(lambda: shell.stats().acked == 24, within=60)
    assert len(shell.effects()) == 24
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()
    for pid in {int(body.split()[-1]) for body in shell.effects()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_worker_restarts_when_code_changes(shell: Shell) -> None:
    running = shell.start("tasks:worker", "--reload")
    shell.enqueue("first")
    eventually(lambda: len(shell.effects()) == 1, within=30)
    more = "\ndef handle(message, session):\n    session.add(Effect(body='changed'))\n"
    shell.write(1, f"{more}\nworker = make()\n")
    eventually(lambda: shell.log.read_text().count("working") == 2, within=30)
    assert "files changed, restarting" in shell.log.read_text()
    shell.enqueue("second")
    eventually(lambda: "changed" in shell.effects(), within=30)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tasks", "expected package.module:name"),
        ("nothing:worker", "no module 'nothing'"),
        ("tasks:nothing", "has no 'nothing'"),
        ("tasks:Task", "is no Worker"),
        ("tasks:worker --processes 2 --reload", "leave out --processes"),
    ],
)
def test_mistakes_are_reported(shell: Shell, target: str, message: str) -> None:
    if shell.engine.dialect.name != "sqlite":
        return  # Mistakes have nothing to do with the database.
    running = shell.start(*target.split())
    assert running.wait(30) in (1, 2)
    assert message in shell.log.read_text()
