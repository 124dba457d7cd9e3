"""An outbox: after a transaction has committed, its announcements are sent as HTTP requests.

If a response is lost, the request is sent again. The receiver can recognize a repeated request by
its ``Idempotency-Key``.
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
    response = client.post(
        RECEIVER,
        json={"event": message.event, "data": message.data},
        headers={"Idempotency-Key": str(message.id)},
    )
    if response.status_code in (400, 404, 410, 422):  # The receiver will never accept it.
        raise Discard(f"{response.status_code} {response.reason_phrase}")
    response.raise_for_status()


worker = Worker(
    Subscriber(Announcement, URL),
    post,
    sessionmaker(engine),
    concurrency=4,
    retry=RetryPolicy(max_attempts=20, min_delay=0.2, max_delay=600),
)
