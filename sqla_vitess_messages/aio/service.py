"""A service that runs in an event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from ..runtime import Runtime
from ..service import BaseService
from ..sessions import check_made
from .runtime import AsyncioRuntime

__all__ = ["AsyncioService", "begin_session"]


class AsyncioService(BaseService):
    """A service that runs in the event loop that starts it."""

    async def start(self) -> None:
        """Begin."""
        raise NotImplementedError

    async def stop(self) -> bool:
        """End, and return whether everything was finished in time."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            await self.stop()
        else:
            # All of this has to be done, also when the caller is cancelled again.
            await asyncio.shield(greenlet_spawn(self._shut_down))

    def _make_runtime(self) -> Runtime:
        return AsyncioRuntime()

    def _catch_signals(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        caught: list[signal.Signals] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # RuntimeError: not the main thread. NotImplementedError: Windows.
            with suppress(RuntimeError, ValueError, NotImplementedError):
                loop.add_signal_handler(number, self._note_signal)
                caught.append(number)

        def restore() -> None:
            for number in caught:
                loop.remove_signal_handler(number)

        return restore

    def _run_in_process(self, on_start: Callable[[], object]) -> bool:
        asyncio.run(greenlet_spawn(self._run, on_start))
        return self._signals < 2


@contextmanager
def begin_session(session_factory: Callable[[], AsyncSession]) -> Iterator[AsyncSession]:
    """Begin a transaction, in a greenlet. It commits with the block.

    :raises InvalidArgumentType: when the factory makes anything but an AsyncSession.
    """
    session = session_factory()
    check_made(session_factory, session, AsyncSession)
    try:
        with session.sync_session.begin():
            yield session
    finally:
        await_only(asyncio.shield(session.close()))
