"""Run a worker that a module defines: in this process, in several, or restarted on changes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from ..errors import InvalidArgument
from ..receiving.worker import BaseWorker
from .targets import load

__all__ = ["load_worker", "run_processes", "run_reloading", "run_worker"]

log = logging.getLogger(__name__)

RESTART_DELAY = 1.0
"""Seconds until a process that died is replaced."""

CHILD_POLL_INTERVAL = 0.1
"""Seconds between two checks of the processes and of received signals."""


def load_worker(target: str) -> BaseWorker[Any]:
    """Import the worker that ``package.module:name`` names.

    :param target: the name may have dots, and may be that of a function that returns a worker.
    :raises InvalidArgument: when it names no worker.
    """
    found = load(target)
    if not isinstance(found, BaseWorker) and callable(found):
        found = found()
    if not isinstance(found, BaseWorker):
        raise InvalidArgument(f"{target!r}: {found!r} is no Worker")
    return found


def run_worker(target: str, concurrency: int | None = None) -> int:
    """Run a worker in this process until it receives a signal.

    :return: the exit code: 0, or 1 after a second signal.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(processName)s %(message)s"
    )
    worker = load_worker(target)
    if concurrency is not None:
        worker.concurrency = concurrency
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_stop_after, args=(parent, worker), daemon=True).start()
    return 0 if worker._run_in_process() else 1


def _stop_after(parent: BaseProcess, worker: BaseWorker[Any]) -> None:
    """Stop the worker when the supervising process has ended, for whatever reason."""
    parent.join()
    worker.request_stop()


def _run_child(target: str, concurrency: int | None) -> None:
    os.setpgrp()  # A terminal's Ctrl-C reaches the supervisor alone, which stops its children.
    sys.exit(run_worker(target, concurrency))


def run_processes(target: str, processes: int, concurrency: int | None = None) -> int:
    """Run a worker in several processes until a signal, and replace processes that die.

    :return: the exit code: 0, or 1 after a second signal.
    """
    load_worker(target)  # Reports a mistake once, instead of in each process.
    supervisor = _Supervisor(target, concurrency)
    return supervisor.run(processes)


class _Supervisor:
    def __init__(self, target: str, concurrency: int | None) -> None:
        self._arguments = (target, concurrency)
        self._context = multiprocessing.get_context("spawn")
        self._children: list[BaseProcess] = []
        self._signals = 0

    def run(self, processes: int) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count_signal)
        self._children = [self._start() for _ in range(processes)]
        forwarded = 0
        while any(child.is_alive() for child in self._children):
            if forwarded < self._signals:
                forwarded += 1
                self._terminate_children()
            elif not self._signals:
                self._replace_dead()
            time.sleep(CHILD_POLL_INTERVAL)
        return 0 if self._signals < 2 else 1

    def _start(self) -> BaseProcess:
        child = self._context.Process(target=_run_child, args=self._arguments)
        child.start()
        return child

    def _replace_dead(self) -> None:
        for index, child in enumerate(self._children):
            if not child.is_alive():
                log.error("process %s ended with %s; starting another", child.pid, child.exitcode)
                time.sleep(RESTART_DELAY)
                self._children[index] = self._start()

    def _terminate_children(self) -> None:
        for child in self._children:
            if child.is_alive():
                child.terminate()

    def _count_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1


def run_reloading(
    target: str, concurrency: int | None = None, *, notify: Callable[[str], None]
) -> int:
    """Run a worker in a process, and restart it when a Python file below this folder changes.

    :param notify: called with a line of text for the user at each restart.
    """
    from watchfiles import PythonFilter, run_process

    run_process(
        ".",
        target=_run_child,
        args=(target, concurrency),
        watch_filter=PythonFilter(),
        callback=lambda changes: notify(f"{len(changes)} files changed, restarting"),
    )
    return 0
