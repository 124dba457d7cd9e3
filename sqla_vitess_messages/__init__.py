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
from .stats import QueueStats
from .subscriber import Subscriber

__all__ = [
    "AlreadySettled",
    "InvalidArgument",
    "InvalidArgumentType",
    "InvalidQueue",
    "LeaseLost",
    "MessageQueueError",
    "MessageQueueMixin",
    "QueueNotFound",
    "QueueOptions",
    "QueueStats",
    "Subscriber",
    "SubscriberClosed",
    "emits",
    "on_commit",
    "without_emits",
]
