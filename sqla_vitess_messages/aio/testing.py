"""Helpers for tests of code that handles messages in coroutines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from ..arguments import check_function
from ..receiving import draining
from ..receiving.retries import RetryPolicy
from ..receiving.subscriber import M
from .worker import AsyncHandler, begin_handling

__all__ = ["drain"]


async def drain(
    model: type[M],
    session_factory: Callable[[], AsyncSession],
    handler: AsyncHandler[M],
    *,
    retry: RetryPolicy | None = None,
) -> list[M]:
    """Handle all messages that are due; see :func:`sqla_vitess_messages.testing.drain`.

    :param model: the queue's class.
    :param session_factory: makes an AsyncSession.
    :param handler: awaited as ``handler(message, session)``.
    :param retry: whether and when a message whose handler failed is retried. Default: the exception
        is raised, and the message is ready again.
    :return: the messages whose handler returned, in this order, as they were received.
    :raises AssertionError: after 10,000 messages, which means that they never end.
    """
    check_function("handler", handler, is_async=True)
    begin = partial(begin_handling, session_factory, handler)
    return await greenlet_spawn(draining.drain, model, begin, retry)
