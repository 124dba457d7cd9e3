"""Run code in a session of an admin, whose engine is synchronous or an asyncio one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
from sqladmin import ModelView
from sqlalchemy.orm import Session

__all__ = ["in_session"]

T = TypeVar("T")


async def in_session(view: ModelView | type[ModelView], function: Callable[[Session], T]) -> T:
    """Call a function with a new Session of a view, without blocking the event loop.

    :param function: synchronous code, which commits what it changes.
    """
    make_session: Any = view.session_maker
    if view.is_async:
        async with make_session(expire_on_commit=False) as session:
            result: T = await session.run_sync(function)
            return result

    def call() -> T:
        with make_session(expire_on_commit=False) as session:
            return function(session)

    return await anyio.to_thread.run_sync(call)
