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

    def log_lines(self, text: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if text in line]

    def workers(self) -> set[int]:
        """Return the ids of the processes that have handled messages."""
        return {int(body.split()[-1]) for body in self.effects()}

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
    eventually(lambda: shell.stats().leased == 6, within=30)
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


@pytest.mark.long
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


NOTE_PROCESS = """
import multiprocessing
if multiprocessing.parent_process():
    open(f"process-{os.getpid()}", "w")
"""


FAILING = """
def handle(message, session):
    raise ValueError("no such address")
"""


def test_log_lines_name_queue_message_and_epoch(shell: Shell) -> None:
    retry = "retry=RetryPolicy(max_attempts=1)"
    more = MODULE.partition("def make")[2].replace("concurrency=2", retry)
    more = more.replace("{url!r}", repr(shell._values["url"]))
    shell.write(1, f"{FAILING}\nfrom sqla_vitess_messages import RetryPolicy\ndef make{more}")
    message = shell.queue(body="first")
    with Session(shell.engine, expire_on_commit=False) as session, session.begin():
        session.add(message)
    running = shell.start("tasks:worker")
    eventually(lambda: shell.stats().dead == 1, within=40)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()
    [line] = shell.log_lines("failed: ")
    assert "no such address" in line
    name = shell.queue.__tablename__
    assert line.endswith(f"[queue={name} message_id={message.id} epoch=0]")
    assert shell.log_lines(f"working [queue={name}]")


SECOND_WORKER = """
def handle_others(message, session):
    session.add(Effect(body=f"other {os.getpid()}"))

other = Worker(
    Subscriber(Task, URL), handle_others, sessionmaker(create_engine(URL)), concurrency=1
)
"""


def test_several_workers_work_in_processes_of_their_own_and_end_together(shell: Shell) -> None:
    shell.write(seconds=0.1, more=SECOND_WORKER.replace("URL", repr(shell._values["url"])))
    running = shell.start("tasks:worker", "tasks:other")

    def kinds() -> set[bool]:
        shell.enqueue("quick")
        return {"other" in body for body in shell.effects()}

    eventually(lambda: len(kinds()) == 2, within=60)
    assert len(shell.workers()) == 2
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()


@pytest.mark.long
def test_processes_that_all_die_at_once_are_replaced(shell: Shell) -> None:
    shell.write(seconds=1, more=NOTE_PROCESS)
    running = shell.start("tasks:worker", "--processes", "2")
    eventually(lambda: len(shell.log_lines(" working")) == 2, within=60)
    running.send_signal(signal.SIGSTOP)  # So that it finds all of them dead at the same time.
    for path in shell.folder.glob("process-*"):
        os.kill(int(path.name.removeprefix("process-")), signal.SIGKILL)
    running.send_signal(signal.SIGCONT)
    eventually(lambda: len(shell.log_lines("ended with -9")) == 2, within=20)
    shell.enqueue("quick")
    eventually(shell.effects, within=60)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()


FORKING_HANDLER = """
import multiprocessing
fork = multiprocessing.get_context("fork")

def handle(message, session):
    ready = fork.Event()
    child = fork.Process(target=lambda: ready.set() or time.sleep(60))
    child.start()
    ready.wait(20)
    child.terminate()
    child.join(20)
    session.add(Effect(body=f"{child.exitcode} by 0"))
    child.kill()

worker = make()
"""


def test_a_signal_ends_a_process_that_a_handler_has_forked(shell: Shell) -> None:
    shell.write(seconds=1, more=FORKING_HANDLER)
    shell.enqueue("some")
    running = shell.start("tasks:worker")
    eventually(shell.effects, within=40)
    assert shell.effects() == ["-15 by 0"]
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()


UNREACHABLE = "mysql+pymysql://user:hunter2secret@127.0.0.1:1/main"


@pytest.mark.parametrize("reason", ["missing table", "unreachable"])
def test_processes_that_cannot_work_end_with_one_line(shell: Shell, reason: str) -> None:
    if shell.engine.dialect.name != "sqlite":
        return  # The supervisor is the same.
    if reason == "missing table":
        shell.queue.__table__.drop(shell.engine)
    else:
        more = f"worker._subscriber = Subscriber(Task, {UNREACHABLE!r})\n"
        shell.write(seconds=1, more=more)
    running = shell.start("tasks:worker", "--processes", "3")
    assert running.wait(60) == 2, shell.log.read_text()
    [line] = [*shell.log_lines("has no table"), *shell.log_lines("Can't connect")]
    assert line.startswith("Error: ")
    assert "Traceback" not in shell.log.read_text()
    assert "hunter2secret" not in shell.log.read_text()


@pytest.mark.long
def test_a_database_that_goes_away_later_is_waited_for(shell: Shell) -> None:
    if shell.engine.dialect.name != "sqlite":
        return  # The supervisor is the same.
    more = f"""
if os.path.exists("away"):
    worker._subscriber = Subscriber(Task, {UNREACHABLE!r})
"""
    shell.write(seconds=0.1, more=more)
    shell.enqueue(*(f"slow {number}" for number in range(4)))
    running = shell.start("tasks:worker", "--processes", "2")
    killed = eventually(shell.workers, within=40)
    eventually(lambda: len(shell.log_lines(" working")) == 2, within=40)
    away = shell.folder / "away"
    away.touch()
    os.kill(min(killed), signal.SIGKILL)
    eventually(lambda: shell.log_lines("ended with 1; starting another in 2 s"), within=40)
    away.unlink()
    eventually(lambda: len(shell.log_lines(" working")) == 3, within=40)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0, shell.log.read_text()


@pytest.mark.long
def test_processes_that_die_young_are_replaced_ever_more_slowly_until_a_signal(
    shell: Shell,
) -> None:
    if shell.engine.dialect.name != "sqlite":
        return  # The supervisor is the same.
    shell.write(
        seconds=1,
        more="import multiprocessing\nif multiprocessing.parent_process(): os._exit(3)\n",
    )
    running = shell.start("tasks:worker", "--processes", "2")
    for delay in ("0 s", "1 s", "2 s"):
        line = f"ended with 3; starting another in {delay}"
        eventually(lambda line=line: len(shell.log_lines(line)) == 2, within=40)
    running.send_signal(signal.SIGTERM)  # All are dead, and the next are to start in seconds.
    assert running.wait(20) == 0, shell.log.read_text()
    assert not shell.log_lines("starting another in 4 s")


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
    assert running.wait(30) == 2
    assert message in shell.log.read_text()
