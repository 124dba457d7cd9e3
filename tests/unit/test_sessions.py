"""What is no session: it is refused wherever one is expected, and not called to make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, scoped_session, sessionmaker

from sqla_vitess_messages import (
    InvalidArgumentType,
    MessageQueueMixin,
    QueueOptions,
    Topic,
    on_commit,
    without_emits,
)
from sqla_vitess_messages.sessions import sync_session
from sqla_vitess_messages.testing import assert_enqueued, enqueued


class Base(DeclarativeBase):
    pass


class Placed(Topic):
    order_id: Mapped[int]


class Mail(Placed, MessageQueueMixin, Base):
    __tablename__ = "mail"
    __queue__ = QueueOptions(pausable=True)


CALLS: dict[str, Callable[[Any], Any]] = {
    "ack": lambda session: Mail.ack_all(session, []),
    "fail": lambda session: Mail.fail_all(session, []),
    "retry": lambda session: Mail.retry_all(session, []),
    "extend": lambda session: Mail.extend_all(session, [], 1),
    "cancel": lambda session: Mail.cancel(session, []),
    "reschedule": lambda session: Mail.reschedule(session, [], deliver_in=1),
    "run_now": lambda session: Mail.run_now(session, []),
    "requeue": Mail.requeue,
    "purge_dead": Mail.purge_dead,
    "dead": Mail.dead,
    "stats": Mail.stats,
    "pause": Mail.pause,
    "resume": Mail.resume,
    "is_paused": Mail.is_paused,
    "enqueue": lambda session: Mail.enqueue(session, Mail(order_id=1)),
    "publish": lambda session: Placed.publish(session, order_id=1),
    "publish_all": lambda session: Placed.publish_all(session, []),
    "on_commit": lambda session: on_commit(session, lambda: None),
    "without_emits": lambda session: without_emits(session).__enter__(),
    "enqueued": lambda session: enqueued(session, Mail),
    "assert_enqueued": lambda session: assert_enqueued(session, Mail),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_makes_sessions_is_refused(call: str) -> None:
    for no_session in ("s", sessionmaker(), async_sessionmaker(), Session):
        with pytest.raises(InvalidArgumentType, match=r"session=.*: expected a Session"):
            CALLS[call](no_session)


def test_what_is_scoped_stands_for_its_session() -> None:
    scoped = scoped_session(sessionmaker())
    assert sync_session(scoped) is scoped()
    scoped_async: Any = async_scoped_session(async_sessionmaker(), scopefunc=lambda: 1)
    assert sync_session(scoped_async) is scoped_async().sync_session
    assert isinstance(sync_session(AsyncSession()), Session)
