"""Message queues in your SQL database, as SQLAlchemy models: Vitess, MySQL, MariaDB, SQLite."""

from .errors import (
    AlreadyEnqueued,
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
from .periodic.periodic import Periodic
from .periodic.scheduler import Scheduler
from .receiving.retries import Discard, Retry, RetryPolicy
from .receiving.subscriber import Subscriber
from .receiving.worker import Worker
from .rows.enqueue import random_id
from .rows.enqueue_unique import IfExists
from .rows.stats import QueueStats
from .table import sharding as _sharding  # noqa: F401  # Listens for create_all and drop_all.
from .table.options import Layout, QueueOptions
from .topics.topic import Topic
from .transports.choice import Grpc, Pull, Stream, TransportName
from .vitess import workarounds as _workarounds  # noqa: F401  # Listens for connections to vtgate.

__all__ = [
    "AlreadyEnqueued",
    "AlreadySettled",
    "Discard",
    "Grpc",
    "IfExists",
    "InvalidArgument",
    "InvalidArgumentType",
    "InvalidQueue",
    "Layout",
    "LeaseLost",
    "MessageQueueError",
    "MessageQueueMixin",
    "Periodic",
    "Pull",
    "QueueNotFound",
    "QueueOptions",
    "QueueStats",
    "Retry",
    "RetryPolicy",
    "Scheduler",
    "SettlementError",
    "Stream",
    "Subscriber",
    "SubscriberClosed",
    "Topic",
    "TransportName",
    "Worker",
    "emits",
    "on_commit",
    "random_id",
    "without_emits",
]
