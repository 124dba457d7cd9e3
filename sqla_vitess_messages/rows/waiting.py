"""Wait until messages are settled, by polling their rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import URL, Engine, case, create_engine, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType
from ..shown import shown
from ..urls import parse_url
from . import states
from .lost import is_lost, watch
from .message import Message, queue_table
from .queries import id_condition, shard_conditions
from .selection import Keys, ids_of, parameters_of
from .transient import is_refused, retry_transaction

__all__ = ["PURGED", "engine_for", "wait"]

PURGED = "purged"
"""The state of a message without a row."""

SHORTEST_PAUSE = 0.005
LONGEST_PAUSE = 0.5
"""Seconds between two polls."""

SHARE = 0.1
"""A pause takes this share of the time waited so far: so much later at most the end is noticed."""


PATIENCE = 30.0
"""Seconds without an answer of the database, as during its restart or a reparent, until that is an
error."""


@contextmanager
def engine_for(bind: str | URL | Engine) -> Iterator[Engine]:
    """Provide the engine to poll with: the caller's, or one of our own for a URL.

    :raises InvalidArgument: for a URL that can't be parsed, and for one of an asyncio driver.
    :raises InvalidArgumentType: for anything but a URL or an Engine.
    """
    if isinstance(bind, Engine):
        engine = bind
    elif isinstance(bind, (str, URL)):
        try:
            engine = create_engine(parse_url(bind))
        except ArgumentError as error:
            raise InvalidArgument("bind: expected a database URL such as sqlite:///a.db") from error
    else:
        raise InvalidArgumentType(f"bind={shown(bind)}: expected a URL or an Engine")
    if engine.dialect.is_async:
        raise InvalidArgument(
            f"bind: {engine.url.drivername} is a driver for asyncio; use "
            "sqla_vitess_messages.aio.wait"
        )
    try:
        yield engine
    finally:
        if engine is not bind:
            engine.dispose()


def wait(
    model: type[Message],
    engine: Engine,
    messages: Any,
    timeout: float | timedelta | None,
    sleep: Callable[[float], None],
) -> list[str]:
    """Wait until messages are acked, dead or gone; see :meth:`.ChangeableQueue.wait`.

    :param sleep: waits for so many seconds.
    """
    longest = None if timeout is None else clock.to_seconds(timeout, "timeout")
    given = ids_of(model, messages)
    waiting, ended = dict(given), dict[int, str]()
    started = answered_at = time.monotonic()
    watch(engine)
    while True:
        try:
            found = retry_transaction(partial(_find_states, model, engine, waiting))
            answered_at = time.monotonic()
        except DBAPIError as error:
            passes = is_lost(error, engine) or is_refused(error)
            if not passes or time.monotonic() - answered_at > PATIENCE:
                raise
            found = dict.fromkeys(waiting)
        for message_id in list(waiting):
            state = found.get(message_id, PURGED)
            if state is not None:
                ended[message_id] = state
                del waiting[message_id]
        if not waiting:
            return [ended[message_id] for message_id, _key in given]
        waited = time.monotonic() - started
        if longest is not None and waited >= longest:
            raise TimeoutError(_describe(queue_table(model).name, waiting, len(given), longest))
        pause = min(max(waited * SHARE, SHORTEST_PAUSE), LONGEST_PAUSE)
        sleep(pause if longest is None else min(pause, longest - waited))


def _find_states(model: type[Message], engine: Engine, ids: Keys) -> dict[int, str | None]:
    """Return "acked" or "dead" for the messages that have a row, and None for those that wait."""
    table = queue_table(model)
    is_acked, is_dead = table.c.time_acked.is_not(None), states.is_dead(table)
    polling = select(table.c.id, case((is_acked, "acked"), (is_dead, "dead"))).where(
        id_condition(table), *shard_conditions(table)
    )
    found: dict[int, str | None] = {}
    with engine.connect() as connection:
        for parameters in parameters_of(model, connection, ids):
            found.update(tuple(row) for row in connection.execute(polling, parameters))
    return found


def _describe(queue: str, waiting: dict[int, Any], given: int, seconds: float) -> str:
    some = ", ".join(map(str, list(waiting)[:10])) + (", …" if len(waiting) > 10 else "")
    return (
        f"{len(waiting)} of {given} messages of {queue!r} are neither acked nor dead after "
        f"{seconds} s: {some}"
    )
