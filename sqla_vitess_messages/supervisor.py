"""Run a worker that a module defines: here, in several processes, or anew when code changes."""

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
from typing import Protocol

from .errors import InvalidArgument
from .targets import load

__all__ = ["load_worker", "run_processes", "run_reloading", "run_worker"]

log = logging.getLogger(__name__)

RESTART_AFTER = 1.0
"""Seconds until a process that died is replaced."""


class Runnable(Protocol):
    """What :class:`.Worker` and :class:`.AsyncWorker` have in common here."""

    concurrency: int

    def run_until_signal(self) -> bool:
        """Work until SIGTERM or SIGINT; a second one ends it at once.

        :return: False after a second one.
        """
        ...

    def request_stop(self) -> None:
        """End as after a signal, from any thread."""
        ...


def load_worker(target: str) -> Runnable:
    """Import the worker that ``package.module:name`` names.

    :param target: the name may have dots, and may be a function that makes a worker.
    :raises InvalidArgument: when there is none.
    """
    found = load(target)
    if not hasattr(found, "run_until_signal") and callable(found):
        found = found()
    if not hasattr(found, "run_until_signal"):
        raise InvalidArgument(f"{target!r}: {found!r} is no Worker")
    worker: Runnable = found
    return worker


def run_worker(target: str, concurrency: int | None = None) -> int:
    """Run a worker in this process until a signal.

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
    return 0 if worker.run_until_signal() else 1


def _stop_after(parent: BaseProcess, worker: Runnable) -> None:
    """Stop when the supervising process is gone, however it went."""
    parent.join()
    worker.request_stop()


def _run_child(target: str, concurrency: int | None) -> None:
    os.setpgrp()  # A terminal's Ctrl-C goes to the supervisor, and from there to its children.
    sys.exit(run_worker(target, concurrency))


def run_processes(target: str, processes: int, concurrency: int | None = None) -> int:
    """Run a worker in several processes until a signal, and replace those that die.

    :return: the exit code: 0, or 1 after a second signal.
    """
    load_worker(target)  # A mistake is told once, and here.
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
            signal.signal(number, self._note_signal)
        self._children = [self._start() for _ in range(processes)]
        told = 0
        while any(child.is_alive() for child in self._children):
            if told < self._signals:
                told += 1
                self._tell_children()
            elif not self._signals:
                self._replace_dead()
            time.sleep(0.1)
        return 0 if self._signals < 2 else 1

    def _start(self) -> BaseProcess:
        child = self._context.Process(target=_run_child, args=self._arguments)
        child.start()
        return child

    def _replace_dead(self) -> None:
        for place, child in enumerate(self._children):
            if not child.is_alive():
                log.error("process %s ended with %s; starting another", child.pid, child.exitcode)
                time.sleep(RESTART_AFTER)
                self._children[place] = self._start()

    def _tell_children(self) -> None:
        for child in self._children:
            if child.is_alive():
                child.terminate()

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1


def run_reloading(
    target: str, concurrency: int | None = None, *, notify: Callable[[str], None]
) -> int:
    """Run a worker in a process, and anew whenever a Python file below this folder changes.

    :param notify: called with a line for the user at each change.
    """
    from watchfiles import PythonFilter, run_process

    run_process(
        ".",
        target=_run_child,
        args=(target, concurrency),
        watch_filter=PythonFilter(),
        callback=lambda changes: notify(f"{len(changes)} files changed, starting anew"),
    )
    return 0
