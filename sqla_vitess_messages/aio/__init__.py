"""The same for asyncio: messages of an AsyncEngine, without a thread for each."""

from .subscriber import AsyncSubscriber
from .worker import AsyncWorker

__all__ = ["AsyncSubscriber", "AsyncWorker"]
