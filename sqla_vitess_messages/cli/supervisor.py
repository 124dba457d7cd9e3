"""Run workers that modules define: in this process, in several, or restarted on changes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ..errors import MessageQueueError
from ..extras import needs_extra
from ..logs import get_logger
from ..receiving.worker import BaseWorker
from .exits import error_line, print_error
from .log_lines import log_to_terminal
from .targets import load_instance

__all__ = [
    "CannotWork",
    "load_worker",
    "run",
    "run_reloading",
    "run_worker",
]

log = get_logger(__name__)

FIRST_RESTART_DELAY = 1.0
"""Seconds until a process is replaced that died young, as did the one before it; doubled for each
further one. One that died alone is replaced at once."""

MAX_RESTART_DELAY = 60.0
"""Seconds until a process that died is replaced, at most."""

YOUNG = 60.0
"""Seconds for which a process has to live, so that its successor is started without a longer delay.
"""

CANNOT_WORK = 78
"""The exit code of a process that another one couldn't replace: ``EX_CONFIG`` of sysexits.h."""

CHILD_POLL_INTERVAL = 0.1
"""Seconds between two checks of the processes and of received signals."""


def load_worker(target: str) -> BaseWorker[Any]:
    """Import the worker that ``package.module:name`` names.

    :param target: the name may have dots, and may be that of a function that returns a worker.
    :raises InvalidArgument: when it names no worker.
    """
    return load_instance(target, BaseWorker, "Worker")


def run_worker(
    target: str,
    concurrency: int | None = None,
    *,
    on_start: Callable[[], object] = lambda: None,
) -> int:
    """Run a worker in this process until it receives a signal.

    :param on_start: is called when the worker works.
    :return: the exit code: 0, or 1 after a second signal.
    """
    log_to_terminal()
    worker = load_worker(target)
    if concurrency is not None:
        worker.concurrency = concurrency
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_stop_after, args=(parent, worker), daemon=True).start()
    return 0 if worker._run_in_process(on_start) else 1


def _stop_after(parent: BaseProcess, worker: BaseWorker[Any]) -> None:
    """Stop the worker when the supervising process has ended, for whatever reason."""
    parent.join()
    worker.request_stop()


class _Reports:
    """What the processes tell their supervisor."""

    def __init__(self, context: SpawnContext) -> None:
        self.has_worked = context.Event()
        """Whether any process has worked: then the database has been reachable."""
        self.errors = context.SimpleQueue()
        """Why processes can't work."""


def _run_child(target: str, concurrency: int | None, reports: _Reports) -> None:
    os.setpgrp()  # A terminal's Ctrl-C reaches the supervisor alone, which stops its children.
    sys.exit(_run_supervised(target, concurrency, reports))


def _run_supervised(target: str, concurrency: int | None, reports: _Reports) -> int:
    """Run a worker, and report what keeps it, and would keep another one, from starting.

    That the database can't be reached counts only as long as no process has worked.
    """
    works = False

    def note_start() -> None:
        nonlocal works
        works = True
        reports.has_worked.set()

    try:
        return run_worker(target, concurrency, on_start=note_start)
    except (SQLAlchemyError, MessageQueueError) as error:
        is_mistake = isinstance(error, MessageQueueError) or not reports.has_worked.is_set()
        if works or not is_mistake:
            raise
        reports.errors.put(error_line(error))
        return CANNOT_WORK


def run(targets: Sequence[str], processes: int = 1, concurrency: int | None = None) -> int:
    """Run workers until a signal: one in this process, several in processes that are replaced.

    :param targets: as of :func:`load_worker`.
    :param processes: how many of each.
    :return: the exit code: 0, or 1 after a second signal.
    :raises CannotWork: when no process can work: the table is missing, for instance, or the
        database can't be reached at the start.
    """
    if len(targets) == processes == 1:
        return run_worker(targets[0], concurrency)
    for target in targets:
        load_worker(target)  # Reports a mistake once, instead of in each process.
    log_to_terminal()
    return _Supervisor(concurrency).run([*targets] * processes)


class CannotWork(MessageQueueError):
    """A worker can't be started, and another attempt would fail in the same way."""


class _Slot:
    """The place of one process, and of those that replace it.

    :param start: starts a process.
    """

    def __init__(self, start: Callable[[], BaseProcess]) -> None:
        self._start = start
        self._died_young = 0
        self._start_process()

    def _start_process(self) -> None:
        self._restart_at: float | None = None
        self._started_at = time.monotonic()
        self.process = self._start()

    def replace_dead(self) -> None:
        """Start another process if this one has died some time ago, the later the more died."""
        if self.process.is_alive():
            return
        now = time.monotonic()
        if self._restart_at is None:
            young = now - self._started_at < YOUNG
            self._died_young = self._died_young + 1 if young else 1
            delay = 0.0
            if self._died_young > 1:
                delay = min(FIRST_RESTART_DELAY * 2 ** (self._died_young - 2), MAX_RESTART_DELAY)
            self._restart_at = now + delay
            log.error(
                "process %s ended with %s; starting another in %g s",
                self.process.pid, self.process.exitcode, delay,
            )  # fmt: skip
        elif now >= self._restart_at:
            self._start_process()


class _Supervisor:
    def __init__(self, concurrency: int | None) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._reports = _Reports(self._context)
        self._concurrency = concurrency
        self._slots: list[_Slot] = []
        self._signals = 0

    def run(self, targets: Sequence[str]) -> int:
        """Run a process for each target until a signal; see :func:`run`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count_signal)
        self._slots = [_Slot(partial(self._start, target)) for target in targets]
        while not self._signals:
            if any(slot.process.exitcode == CANNOT_WORK for slot in self._slots):
                break
            for slot in self._slots:
                slot.replace_dead()
            time.sleep(CHILD_POLL_INTERVAL)
        self._stop()
        if not self._reports.errors.empty():
            raise CannotWork(self._reports.errors.get())
        return 0 if self._signals < 2 else 1

    def _start(self, target: str) -> BaseProcess:
        arguments = (target, self._concurrency, self._reports)
        child = self._context.Process(target=_run_child, args=arguments)
        child.start()
        return child

    def _stop(self) -> None:
        """Wait until the processes have finished, and end them at the second signal."""
        self._terminate()
        forwarded = 1
        while any(slot.process.is_alive() for slot in self._slots):
            if forwarded < self._signals:
                forwarded += 1
                self._terminate()
            time.sleep(CHILD_POLL_INTERVAL)

    def _terminate(self) -> None:
        for slot in self._slots:
            if slot.process.is_alive():
                slot.process.terminate()

    def _count_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1


def run_reloading(
    targets: Sequence[str], concurrency: int | None = None, *, notify: Callable[[str], None]
) -> int:
    """Run workers, and restart them when a Python file below this folder changes.

    :param notify: called with a line of text for the user at each restart.
    """
    with needs_extra("cli", "watchfiles"):
        from watchfiles import PythonFilter, run_process

    run_process(
        ".",
        target=_run_until_change,
        args=(tuple(targets), concurrency),
        watch_filter=PythonFilter(),
        callback=lambda changes: notify(f"{len(changes)} files changed, restarting"),
    )
    return 0


def _run_until_change(targets: Sequence[str], concurrency: int | None) -> None:
    os.setpgrp()  # As in :func:`_run_child`.
    try:
        code = run(targets, concurrency=concurrency)
    except Exception as error:  # noqa: BLE001  # As of every command.
        print_error(error_line(error))
        code = 2
    sys.exit(code)
