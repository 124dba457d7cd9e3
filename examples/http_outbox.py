"""An outbox: what a transaction announces becomes an HTTP request, once the transaction commits.

The receiver may get a request twice, when its answer is lost. It has a key to tell by.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
from sqlalchemy import JSON, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import Discard, MessageQueueMixin, RetryPolicy, Subscriber, Worker

URL = os.environ.get("DATABASE_URL", "sqlite:///outbox.db")
RECEIVER = os.environ.get("RECEIVER_URL", "http://127.0.0.1:8080/events")


class Base(DeclarativeBase):
    pass


class Announcement(MessageQueueMixin, Base):
    __tablename__ = "announcement"
    event: Mapped[str] = mapped_column(String(100))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


engine = create_engine(URL)
Base.metadata.create_all(engine)
client = httpx.Client(timeout=10)


def post(message: Announcement, _session: Session) -> None:
    answer = client.post(
        RECEIVER,
        json={"event": message.event, "data": message.data},
        headers={"Idempotency-Key": str(message.id)},
    )
    if answer.status_code in (400, 404, 410, 422):  # It will never be taken.
        raise Discard(f"{answer.status_code} {answer.reason_phrase}")
    answer.raise_for_status()


worker = Worker(
    Subscriber(Announcement, URL),
    post,
    sessionmaker(engine),
    concurrency=4,
    retry=RetryPolicy(max_attempts=20, first_delay=0.2, longest_delay=600),
)
