"""Repeat the transactions of a worker that fail only because others run at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ..rows.transient import is_transient
from .retries import only_error

__all__ = ["Repetition", "is_busy"]

T = TypeVar("T")

FIRST_DELAY = 0.02
"""Seconds until the first repetition, at most; doubled at each further one."""

MAX_DELAY = 1.0


def is_busy(error: BaseException) -> bool:
    """Return whether a transaction failed only because of others: see :func:`.is_transient`."""
    return is_transient(only_error(error))


class Repetition:
    """Calls a transaction, and again as long as it fails only because of others.

    Those may hold their locks for long, so each repetition waits longer than the one before.

    :param seconds: after which it gives up.
    :param sleep: waits so many seconds, or until the worker is to stop.
    :param must_stop: returns whether the worker is to stop.
    """

    def __init__(
        self, seconds: float, sleep: Callable[[float], None], must_stop: Callable[[], bool]
    ) -> None:
        self._seconds = seconds
        self._sleep = sleep
        self._must_stop = must_stop

    def __call__(self, transaction: Callable[[], T]) -> T:
        give_up_at = time.monotonic() + self._seconds
        try:
            return transaction()
        except BaseException as error:
            if not is_busy(error):
                raise
        from tenacity import Retrying, retry_if_exception
        from tenacity.wait import wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception(is_busy),
            wait=wait_random_exponential(multiplier=FIRST_DELAY, max=MAX_DELAY),
            stop=lambda _state: self._must_stop() or time.monotonic() >= give_up_at,
            sleep=self._sleep,
            reraise=True,
        )
        self._sleep(random.uniform(0, FIRST_DELAY))
        return retrying(transaction)
