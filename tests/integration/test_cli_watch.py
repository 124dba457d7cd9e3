"""``stats --watch`` shows how many messages are enqueued and settled, until Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, delete
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, sessionmaker

from sqla_vitess_messages import MessageQueueMixin
from sqla_vitess_messages.cli.counting import Counts, count_queues
from sqla_vitess_messages.testing import drain
from tests.backends import eventually

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped
from sqla_vitess_messages import MessageQueueMixin

class Base(DeclarativeBase):
    pass

class Task(MessageQueueMixin, Base):
    __tablename__ = "task"
    number: Mapped[int]
"""


class Watching:
    """A process that watches, and what it prints."""

    def __init__(self, folder: Path, *arguments: str, on_terminal: bool) -> None:
        (folder / "models.py").write_text(MODELS)
        self.url = f"sqlite:///{folder}/app.db"
        self.output = ""
        here, there = pty.openpty() if on_terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sqla_vitess_messages", "stats", "models:Base",
             "--url", self.url, *arguments],
            cwd=folder, stdout=there, stderr=there, start_new_session=True,
            env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
        )  # fmt: skip
        os.close(there)
        self._reader = threading.Thread(target=self._read, args=(here,))
        self._reader.start()

    def _read(self, source: int) -> None:
        try:
            while some := os.read(source, 65_536):
                self.output += some.decode(errors="replace")
        except OSError:
            pass  # So does a terminal end whose other side is closed.
        os.close(source)

    def interrupt(self) -> int:
        """Send Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._reader.join()


class Base(DeclarativeBase):
    pass


class Task(MessageQueueMixin, Base):
    __tablename__ = "task"
    number: Mapped[int]


def handle(_message: object, _session: object) -> None:
    pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("on_terminal", "arguments"), [(True, ["--watch", "0.2"]), (False, ["--watch"])]
)
def test_it_shows_rates_and_ends_with_ctrl_c(
    tmp_path: Path, engine: Engine, on_terminal: bool, arguments: list[str]
) -> None:
    watching = Watching(tmp_path, *arguments, on_terminal=on_terminal)
    try:
        eventually(lambda: watching.output.count("settled/s") >= 2, within=60)
        with Session(engine) as session, session.begin():
            session.add_all(Task(number=number) for number in range(20))
        eventually(lambda: "█" in watching.output, within=60)
        assert " 20" in watching.output
        drain(Task, sessionmaker(engine), handle)
        bars = watching.output.count("█")
        eventually(lambda: watching.output.count("█") > bars, within=60)
        assert "Error" not in watching.output
    finally:
        code = watching.interrupt()
    assert code == 0
    assert "Traceback" not in watching.output


def test_what_was_purged_meanwhile_counts_as_settled(engine: Engine) -> None:
    sessions = sessionmaker(engine)

    def count(before: Counts | None) -> Counts:
        with sessions.begin() as session:
            return count_queues([Task], session, before)

    with sessions.begin() as session:
        session.add_all(Task(number=number) for number in range(3))
    drain(Task, sessions, handle)
    before = count(None)
    with sessions.begin() as session:
        session.execute(delete(Task))  # As a purge deletes acked messages.
        session.add_all(Task(number=number) for number in range(5))
    drain(Task, sessions, handle)
    with sessions.begin() as session:
        session.add(Task(number=5))
    sample = count(before)["task"].sample
    assert (sample.enqueued, sample.settled) == (6, 5)
