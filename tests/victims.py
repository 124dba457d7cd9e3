"""Processes that work until they are killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

__all__ = ["Victim"]

_FORKSERVER = multiprocessing.get_context("forkserver")
# Its server imports these once. A process that was spawned would need a second for it.
_FORKSERVER.set_forkserver_preload(["tests.backends", "sqla_vitess_messages.periodic"])


class Victim:
    """A process that works until it is killed.

    :param work: the process's function. Its last argument is an event, which it sets as soon as it
        is at work.
    :param arguments: the others.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._at_work = _FORKSERVER.Event()
        arguments = (*arguments, self._at_work)
        self._process = _FORKSERVER.Process(target=work, args=arguments, daemon=True)
        self._process.start()

    def wait_until_at_work(self, within: float = 60) -> None:
        assert self._at_work.wait(within)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
