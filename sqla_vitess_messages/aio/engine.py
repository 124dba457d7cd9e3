"""Engines of asyncio drivers, set up for leasing."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..errors import InvalidArgument, InvalidArgumentType
from ..extras import needs_extra
from ..shown import shown
from ..transports.engines import check_is_file_url, configure_engine, copy_engine
from ..urls import parse_url

__all__ = ["AsyncBind", "dedicated_async_engine"]

AsyncBind = str | URL | AsyncEngine
"""The database of a subscriber: a URL with an asyncio driver, or an AsyncEngine to copy."""


def dedicated_async_engine(bind: AsyncBind) -> AsyncEngine:
    """Return an engine that shares no connection with any other, and isn't connected yet.

    :raises InvalidArgument: for a URL that can't be parsed or has no asyncio driver, and for what
        no subscriber can use.
    :raises InvalidArgumentType: for anything but a URL or an AsyncEngine.
    """
    if isinstance(bind, AsyncEngine):
        engine = AsyncEngine(copy_engine(bind.sync_engine))
    elif isinstance(bind, (str, URL)):
        try:
            with needs_extra("async", "aiosqlite", "asyncmy"):
                engine = create_async_engine(parse_url(bind))
            check_is_file_url(engine.sync_engine)
        except (ArgumentError, InvalidRequestError) as error:
            raise InvalidArgument(
                "bind: expected a database URL with an asyncio driver, such as "
                "sqlite+aiosqlite:///app.db or mysql+asyncmy://user@host:3306/keyspace"
            ) from error
    else:
        raise InvalidArgumentType(f"bind={shown(bind)}: expected a URL or an AsyncEngine")
    configure_engine(engine.sync_engine)
    return engine
