"""Message queues in your SQL database, as SQLAlchemy models: Vitess, MySQL, MariaDB, SQLite."""

from .errors import (
    AlreadySettled,
    InvalidArgument,
    InvalidArgumentType,
    InvalidQueue,
    LeaseLost,
    MessageQueueError,
    QueueNotFound,
    SettlementError,
    SubscriberClosed,
)
from .hooks import emits, on_commit, without_emits
from .mixin import MessageQueueMixin
from .receiving.retries import Discard, Retry, RetryPolicy
from .receiving.subscriber import Subscriber
from .receiving.worker import Worker
from .rows.enqueue import random_id
from .rows.stats import QueueStats
from .table import sharding as _sharding  # noqa: F401  # Listens for create_all and drop_all.
from .table.options import Layout, QueueOptions
from .transports.choice import Grpc, Pull, Stream, TransportName
from .vitess import workarounds as _workarounds  # noqa: F401  # Listens for connections to vtgate.

__all__ = [
    "AlreadySettled",
    "Discard",
    "Grpc",
    "InvalidArgument",
    "InvalidArgumentType",
    "InvalidQueue",
    "Layout",
    "LeaseLost",
    "MessageQueueError",
    "MessageQueueMixin",
    "Pull",
    "QueueNotFound",
    "QueueOptions",
    "QueueStats",
    "Retry",
    "RetryPolicy",
    "SettlementError",
    "Stream",
    "Subscriber",
    "SubscriberClosed",
    "TransportName",
    "Worker",
    "emits",
    "on_commit",
    "random_id",
    "without_emits",
]
