"""Wait until messages are settled, in a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from ..arguments import check_model
from ..errors import InvalidArgument, InvalidArgumentType
from ..mixin import MessageQueueMixin
from ..rows import waiting
from ..shown import shown
from ..urls import parse_url
from .engine import AsyncBind

__all__ = ["wait"]

M = TypeVar("M", bound=MessageQueueMixin)


async def wait(
    model: type[M],
    bind: AsyncBind,
    messages: Iterable[M | int],
    timeout: float | timedelta | None = None,
) -> list[str]:
    """Wait until messages are acked, dead or gone, and return their states, as ``Model.wait`` does.

    :param model: the queue's class.
    :param bind: an AsyncEngine, or a database URL with an asyncio driver.
    :param messages: messages, or their ids.
    :param timeout: seconds to wait at most, or a timedelta. Default: as long as it takes.
    :return: ``"acked"``, ``"dead"`` or ``"purged"`` for each, in the order given.
    :raises TimeoutError: when some are neither after that time.
    :raises InvalidArgument: for a message without a row, and a URL without an asyncio driver.
    :raises InvalidArgumentType: for anything but an AsyncEngine or a URL, messages or ids.
    """
    check_model(model)
    engine = _engine(bind)
    try:
        return await greenlet_spawn(
            waiting.wait, model, engine.sync_engine, messages, timeout, _sleep
        )
    finally:
        if engine is not bind:
            await engine.dispose()


def _sleep(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))


def _engine(bind: AsyncBind) -> AsyncEngine:
    if isinstance(bind, AsyncEngine):
        return bind
    if not isinstance(bind, (str, URL)):
        raise InvalidArgumentType(f"bind={shown(bind)}: expected a URL or an AsyncEngine")
    try:
        return create_async_engine(parse_url(bind))
    except (ArgumentError, InvalidRequestError) as error:
        raise InvalidArgument(
            "bind: expected a database URL with an asyncio driver, such as "
            "sqlite+aiosqlite:///app.db or mysql+asyncmy://user@host:3306/keyspace"
        ) from error
