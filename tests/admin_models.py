"""The queues that the command ``admin`` serves in its tests."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vitess_messages import MessageQueueMixin, QueueOptions
from sqla_vitess_messages.failures import MessageFailuresMixin


class Base(DeclarativeBase):
    pass


class Mail(MessageFailuresMixin, MessageQueueMixin, Base):
    __tablename__ = "mail"
    __queue__ = QueueOptions(pausable=True)
    address: Mapped[str] = mapped_column(String(200))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class Invoice(MessageQueueMixin, Base):
    __tablename__ = "invoice"
    number: Mapped[int]
