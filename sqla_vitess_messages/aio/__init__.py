"""The same for asyncio: messages of an AsyncEngine, without a thread for each."""

from .scheduler import AsyncScheduler
from .subscriber import AsyncSubscriber
from .waiting import wait
from .worker import AsyncWorker

__all__ = ["AsyncScheduler", "AsyncSubscriber", "AsyncWorker", "wait"]
