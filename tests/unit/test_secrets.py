"""Passwords that are passed in place of something else appear in no error, no log and no repr."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqla_vitess_alembic.online_ddl import use_ddl_strategy
from sqla_vitess_alembic.operations import CreateMessageQueueOp
from sqlalchemy import Engine, String, create_engine, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlmodel import SQLModel

from sqla_vitess_messages import (
    Grpc,
    MessageQueueError,
    MessageQueueMixin,
    Pull,
    QueueOptions,
    Retry,
    RetryPolicy,
    Subscriber,
    Worker,
    emits,
    on_commit,
    testing,
    without_emits,
)
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker
from sqla_vitess_messages.cli.ddl_script import statements
from sqla_vitess_messages.cli.supervisor import load_worker
from sqla_vitess_messages.cli.targets import load, load_queues
from sqla_vitess_messages.contrib.prometheus import PrometheusEvents, QueueCollector
from sqla_vitess_messages.shown import shown

SECRET = "hunter2secret"


class Base(DeclarativeBase):
    pass


class Mail(MessageQueueMixin, Base):
    __tablename__ = "secret_mail"
    __queue__ = QueueOptions()
    text: Mapped[str] = mapped_column(String(20), default="")


class LikeAnEngine:
    def __repr__(self) -> str:
        return f"Engine(mysql://user:{SECRET}@host)"

    __str__ = __repr__


@dataclass
class Options:
    password: str = SECRET


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


def handle(_message: object, _session: object) -> None:
    pass


async def handle_async(_message: object, _session: object) -> None:
    pass


SECRETS: dict[str, Any] = {
    "url": f"mysql+pymysql://user:{SECRET}@host:3306/main",
    "odd url": f"mysql+pymysql://user:a@{SECRET}/b:c@host/main?ssl_ca=x",
    "url with a word for its port": f"mysql+pymysql://user@host:{SECRET}/main",
    "url without a scheme": f"user:{SECRET}@host:15991",
    "query": f"mysql+pymysql://user@host/main?password={SECRET}",
    "object": LikeAnEngine(),
    "dict": {"password": SECRET, SECRET: 1},
    "list": [LikeAnEngine(), f"sqlite://user:{SECRET}@host", [SECRET]],
    "function with a default": lambda password=SECRET: password,
    "error": ValueError(SECRET),
    "URL object": make_url(f"mysql+pymysql://user:{SECRET}@host/main"),
    "engine": create_engine(f"mysql+pymysql://user:{SECRET}@host/main"),
    "dataclass": Options(),
    "nested": ([f"user:{SECRET}@host"],),
    "partial": partial(handle, SECRET),
    "kind of text": type("Text", (str,), {})(f"mysql+pymysql://user:{SECRET}@host/main"),
    "bytes": SECRET.encode(),
    "broken": Broken(),
}


@pytest.fixture
def session(tmp_path: Path) -> Any:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def calls(session: Session) -> dict[Callable[..., Any], dict[str, Any]]:
    """Return public callables with arguments that they accept."""
    engine = session.get_bind()
    assert isinstance(engine, Engine)
    url = engine.url
    message = Mail()
    session.add(message)
    session.commit()
    sync = Subscriber(Mail, url)
    own = AsyncSubscriber(Mail, url.set(drivername="sqlite+aiosqlite"))
    options: dict[str, Any] = {
        "transport": "auto",
        "max_concurrency": 1,
        "max_attempts": 2,
        "on_event": print,
    }
    working = {"concurrency": 1, "retry": None, "batch_size": 1, "shutdown_timeout": 1}
    return {
        Subscriber: {"model": Mail, "bind": url, **options},
        AsyncSubscriber: {"model": Mail, "bind": own._bind, **options},
        Worker: {"subscriber": sync, "handler": handle, "session_factory": sessionmaker(engine)}
        | working,
        AsyncWorker: {
            "subscriber": own,
            "handler": handle_async,
            "session_factory": async_sessionmaker(),
        }
        | working,
        Pull: {"poll_interval": 1, "shards": ["-80"]},
        Grpc: {"address": "host:1"},
        RetryPolicy: {"max_attempts": 2, "min_delay": 1, "max_delay": 2, "rules": {}},
        Retry: {"delay": 1},
        QueueOptions: {
            "layout": "portable",
            "ack_wait": 1,
            "purge_after": 1,
            "batch_size": 1,
            "cache_size": 1,
            "poller_interval": 1,
            "min_backoff": 1,
            "max_backoff": 10,
            "message_cols": ["id"],
            "shard_by": "id",
            "vindex": "hash",
        },
        Mail: {
            "id": 1,
            "priority": 1,
            "time_next": 1,
            "epoch": 1,
            "deliver_at": datetime.now(UTC),
        },
        lambda **values: session.add(Mail(**values)) or session.flush(): {
            "id": 1,
            "priority": 1,
            "time_acked": 1,
        },
        lambda deliver_in: Mail(deliver_in=deliver_in): {"deliver_in": 1},
        Mail.ack_all: {"session": session, "messages": [message]},
        Mail.fail_all: {"session": session, "messages": [message], "reason": "some"},
        Mail.retry_all: {"session": session, "messages": [message], "delay": 1},
        Mail.extend_all: {"session": session, "messages": [message], "seconds": 1},
        Mail.requeue: {"session": session, "messages": [message]},
        Mail.dead: {"session": session, "limit": 1},
        Mail.purge_dead: {"session": session, "older_than": 1},
        Mail.stats: {"session": session},
        message.ack: {"session": session},
        message.fail: {"session": session, "reason": "some"},
        message.retry: {"session": session, "delay": 1},
        message.extend: {"session": session, "seconds": 1},
        sync.get_many: {"limit": 1},
        sync.ack: {"message": message},
        sync.retry: {"message": message, "delay": 1},
        sync.fail: {"message": message, "reason": "some"},
        sync.extend: {"messages": [message], "seconds": 1},
        on_commit: {"session": session, "factory": list},
        lambda model, change, when: emits(model, change, when=when): {
            "model": Base,
            "change": "insert",
            "when": bool,
        },
        emits(Base, "insert"): {"function": handle},
        lambda session: without_emits(session).__enter__(): {"session": session},
        testing.enqueued: {"session": session, "model": Mail},
        testing.assert_enqueued: {"session": session, "model": Mail, "count": 0},
        QueueCollector: {"engine": engine, "model": Mail},
        PrometheusEvents: {"registry": CollectorRegistry()},
        load: {"target": "os:path"},
        load_queues: {"target": f"{__name__}:Base"},
        load_worker: {"target": "nothing:worker"},
        lambda dialect_name: list(statements([], dialect_name)): {"dialect_name": "mysql"},
        use_ddl_strategy: {"connection": session.connection(), "strategy": "vitess"},
        CreateMessageQueueOp: {"name": "queue", "columns": [], "options": QueueOptions()},
    }


@pytest.mark.parametrize("kind", SECRETS)
def test_no_argument_of_a_wrong_type_shows_a_password(
    session: Session, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for call, arguments in calls(session).items():
        for name in arguments:
            if name == "reason" and isinstance(SECRETS[kind], str):
                continue  # It is logged as it is.
            try:
                positional = [*(arguments | {name: SECRETS[kind]}).values()]
                named = arguments | {name: SECRETS[kind]}
                made = call(*positional) if call is QueueCollector else call(**named)
                # A text that is accepted may be a name. A decorator returns what it was given.
                accepted = isinstance(SECRETS[kind], str) or made is SECRETS[kind]
                text = "" if accepted else repr(made)
            except Exception as error:  # noqa: BLE001  # Which one, other tests check.
                session.rollback()
                text = "".join(traceback.format_exception_only(error))
                causes = [error.__cause__, error.__context__]
                text += "".join(str(one) for one in causes if one is not None)
            assert SECRET not in text, f"{call}({name}=…)"
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("some", "'some'"),
        ("mysql://user:a@b/c:d@host/main", "'mysql://user:***@host/main'"),
        ("mysql://user@host:3306/main", "'mysql://user@host:3306/main'"),
        ("sqlite:///app.db", "'sqlite:///app.db'"),
        ("user:secret@host", "'user:***@host'"),
        ("mysql://host/main?password=a&x=1", "'mysql://host/main?password=***&x=1'"),
        pytest.param(10**5000, "<int object", id="longest int"),
        ([1, "a", None], "[1, 'a', None]"),
        ((1,), "(1,)"),
        (frozenset(), "frozenset()"),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …]"),
        (Mail, f"{__name__}.Mail"),
        (print, "builtins.print"),
        ({"a": 1}, "<dict object"),
        (create_engine("mysql+pymysql://user:secret@host/main"),
         "Engine(mysql+pymysql://user:***@host/main)"),
    ],
)  # fmt: skip
def test_a_value_is_shown(value: object, text: str) -> None:
    assert shown(value).startswith(text)


def test_a_long_value_is_cut_off() -> None:
    assert len(shown("x" * 10_000)) < 300


def test_sqlmodel_is_no_exception() -> None:
    class Letter(MessageQueueMixin, SQLModel, table=True):  # type: ignore[call-arg]
        __tablename__ = "secret_letter"

    with pytest.raises(MessageQueueError) as caught:
        Letter(deliver_in=SECRETS["url"])
    assert SECRET not in str(caught.value)
