"""Wake coroutines when something has changed."""

from __future__ import annotations

import asyncio

__all__ = ["Changes"]


class Changes:
    """Wakes whoever waits at the moment. To be used in the thread of the event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Wake everybody."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float | None) -> bool:
        """Wait for the next change.

        :param seconds: how long at most; None for as long as it takes.
        :return: whether there was one.
        """
        try:
            await asyncio.wait_for(self._next.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True
