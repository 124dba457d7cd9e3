"""Engines of asyncio drivers, and calls that run on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar, Union

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from ..errors import InvalidArgument, InvalidArgumentType
from ..transports.base import copy_engine
from ..transports.factory import READ_TIMEOUT, prepare

__all__ = ["AsyncBind", "call", "own_async_engine"]

P = ParamSpec("P")
T = TypeVar("T")

AsyncBind = Union[str, URL, AsyncEngine]


def own_async_engine(bind: AsyncBind) -> AsyncEngine:
    """Return an engine that shares no connection with any other, and isn't connected yet.

    :raises InvalidArgument: for a URL that can't be parsed or has no asyncio driver, and for a
        SQLite database in memory.
    :raises InvalidArgumentType: for anything but a URL or an AsyncEngine.
    """
    if isinstance(bind, AsyncEngine):
        engine = AsyncEngine(copy_engine(bind.sync_engine))
    elif isinstance(bind, (str, URL)):
        try:
            engine = create_async_engine(make_url(bind))
        except (ArgumentError, InvalidRequestError) as error:
            raise InvalidArgument(
                "bind: expected a database URL with an asyncio driver, such as "
                "sqlite+aiosqlite:///app.db or mysql+asyncmy://user@host:3306/keyspace"
            ) from error
    else:
        raise InvalidArgumentType(f"bind={bind!r}: expected a URL or an AsyncEngine")
    prepare(engine.sync_engine)
    return engine


async def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that uses the engine as if it were synchronous.

    :raises OSError: when the server is silent for too long.
    """
    try:
        return await asyncio.wait_for(
            greenlet_spawn(partial(function, *args, **kwargs)), READ_TIMEOUT
        )
    except asyncio.TimeoutError as error:
        raise OSError(f"the server has been silent for {READ_TIMEOUT} s") from error
