"""Repeat the transactions of a worker that fail for a passing reason, and not by its own fault."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ..rows.transient import is_refused, is_transient
from .retries import only_error

__all__ = ["Repetition", "is_busy"]

T = TypeVar("T")

FIRST_DELAY = 0.02
"""Seconds until the first repetition, at most; doubled at each further one."""

MAX_DELAY = 1.0


def is_busy(error: BaseException) -> bool:
    """Return whether a transaction failed because the database could not serve it.

    See :func:`.is_transient` and :func:`.is_refused`. Nothing of it was committed.
    """
    error = only_error(error)
    return is_transient(error) or is_refused(error)


class Repetition:
    """Calls a transaction, and again as long as it fails for a passing reason.

    Others may hold their locks for long, and a server may be away for long, so each repetition
    waits longer than the one before.

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

    def __call__(
        self, transaction: Callable[[], T], is_passing: Callable[[BaseException], bool] = is_busy
    ) -> T:
        """Call a transaction as often as necessary.

        :param is_passing: returns whether an error is a reason to call it again.
        """
        give_up_at = time.monotonic() + self._seconds
        try:
            return transaction()
        except BaseException as error:
            if not is_passing(error):
                raise
        from tenacity import Retrying, retry_if_exception
        from tenacity.wait import wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=FIRST_DELAY, max=MAX_DELAY),
            stop=lambda _state: self._must_stop() or time.monotonic() >= give_up_at,
            sleep=self._sleep,
            reraise=True,
        )
        self._sleep(random.uniform(0, FIRST_DELAY))
        return retrying(transaction)
