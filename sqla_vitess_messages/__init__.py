"""Message queues in your SQL database, as SQLAlchemy models: Vitess, MySQL, MariaDB, SQLite."""

from . import sharding as _sharding  # noqa: F401  # Lets create_all write the vschema.
from . import vtgate as _vtgate  # noqa: F401  # Mends it for every engine of the process.
from .errors import (
    AlreadySettled,
    InvalidArgument,
    InvalidArgumentType,
    InvalidQueue,
    LeaseLost,
    MessageQueueError,
    QueueNotFound,
    SubscriberClosed,
)
from .hooks import emits, on_commit, without_emits
from .mixin import MessageQueueMixin
from .options import QueueOptions
from .retries import Discard, Retry, RetryPolicy
from .stats import QueueStats
from .subscriber import Subscriber
from .worker import Worker

__all__ = [
    "AlreadySettled",
    "Discard",
    "InvalidArgument",
    "InvalidArgumentType",
    "InvalidQueue",
    "LeaseLost",
    "MessageQueueError",
    "MessageQueueMixin",
    "QueueNotFound",
    "QueueOptions",
    "QueueStats",
    "Retry",
    "RetryPolicy",
    "Subscriber",
    "SubscriberClosed",
    "Worker",
    "emits",
    "on_commit",
    "without_emits",
]
