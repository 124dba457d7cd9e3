"""A plain script: enqueue thumbnails, then make all that are due."""

from __future__ import annotations

import os

from sqlalchemy import String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vitess_messages import MessageQueueMixin, Subscriber

URL = os.environ.get("DATABASE_URL", "sqlite:///thumbnails.db")


class Base(DeclarativeBase):
    pass


class Thumbnail(MessageQueueMixin, Base):
    __tablename__ = "thumbnail"
    path: Mapped[str] = mapped_column(String(255))
    width: Mapped[int]


def main() -> int:
    engine = create_engine(URL)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Thumbnail(path=f"{name}.jpg", width=200) for name in ("ada", "bob")])
        session.add(Thumbnail(path="urgent.jpg", width=100, priority=1))
    made = 0
    with Subscriber(Thumbnail, URL, max_concurrency=10) as subscriber:
        while (message := subscriber.get(timeout=2)) is not None:
            print(f"{message.path} at {message.width} pixels")
            subscriber.ack(message)  # Grouped: the work needs no transaction of its own.
            made += 1
    engine.dispose()
    return made


if __name__ == "__main__":
    main()
