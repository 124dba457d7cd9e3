"""Message queues in your SQL database, as SQLAlchemy models: Vitess, MySQL, MariaDB, SQLite."""

from . import autocommit as _autocommit  # noqa: F401  # Makes rollbacks work on Vitess.
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
