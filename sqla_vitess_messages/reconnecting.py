"""Call what uses the database again and again, and reconnect after each failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import Engine, exc

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["lost_connection_errors", "repeat_until_stopped"]

MAX_RECONNECT_DELAY = 2.0
"""Seconds between two attempts to reconnect, at most."""


def lost_connection_errors(engine: Engine) -> tuple[type[Exception], ...]:
    """Return the classes of errors after which to reconnect."""
    # SQLAlchemy passes some of the driver's errors on as they are: those of isolation levels.
    # Its TimeoutError is that of the Engine's pool.
    return exc.DBAPIError, exc.TimeoutError, engine.dialect.loaded_dbapi.Error, OSError


def repeat_until_stopped(
    call: Callable[[], None],
    errors: tuple[type[Exception], ...],
    *,
    is_stopping: Callable[[], bool],
    sleep: Callable[[float], None],
    disconnect: Callable[[BaseException | None], None],
) -> None:
    """Call a function repeatedly; after an error with a delay that grows.

    :param errors: after which to call it again. Others are raised.
    :param sleep: waits for so many seconds, or until it is to stop.
    :param disconnect: is called with such an error, before the delay.
    """
    from tenacity import Retrying, retry_if_exception_type
    from tenacity.wait import wait_random_exponential

    def before_sleep(state: RetryCallState) -> None:
        disconnect(None if state.outcome is None else state.outcome.exception())

    retrying = Retrying(
        retry=retry_if_exception_type(errors),
        wait=wait_random_exponential(multiplier=0.1, max=MAX_RECONNECT_DELAY),
        sleep=sleep,
        stop=lambda _state: is_stopping(),
        before_sleep=before_sleep,
        reraise=True,
    )
    while not is_stopping():
        retrying(call)
