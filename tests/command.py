"""The command line in this process, on queues of a test."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Engine, Interval, Numeric, String
from sqlalchemy import Enum as EnumType
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typer.testing import CliRunner

from sqla_vitess_messages import MessageQueueMixin, QueueOptions
from sqla_vitess_messages.cli.app import app
from sqla_vitess_messages.failures import MessageFailuresMixin
from sqla_vitess_messages.rows.lease import leases_of
from sqla_vitess_messages.rows.settle import fail


class Color(Enum):
    RED = "#f00"
    BLUE = "#00f"


@dataclass
class Commands:
    """Runs commands on two queues: ``Mail``, which can be paused and keeps failures, and ``Bill``.

    :param module: what targets name.
    """

    module: ModuleType
    engine: Engine
    url: str

    @property
    def mail(self) -> Any:
        return self.module.Mail

    @property
    def bill(self) -> Any:
        return self.module.Bill

    def target(self, name: str) -> str:
        return f"{self.module.__name__}:{name}"

    def run(self, command: str, target: str, *arguments: str, code: int = 0, **options: Any) -> str:
        """Run a command, and return what it prints.

        :param target: the name in the module.
        :param code: the exit code that is expected.
        """
        line = [command, self.target(target), "--url", self.url, *arguments]
        done = CliRunner().invoke(app, line, catch_exceptions=False, **options)
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    def json(self, command: str, target: str, *arguments: str) -> Any:
        return json.loads(self.run(command, target, *arguments, "--json"))

    def enqueue(self, *messages: Any) -> None:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.add_all(messages)

    def fail(self, *messages: Any, reason: str | None = None) -> None:
        """Make messages dead, as whoever has queried them may do it."""
        with Session(self.engine) as session, session.begin():
            for message in messages:
                fail(type(message), session, leases_of(type(message), [message]), reason)

    def states(self, target: str = "Base") -> dict[str, str]:
        """Return the state of each message by its id."""
        return {one["id"]: one["state"] for one in self.json("list", target)}


def _models(module: ModuleType, is_sharded: bool) -> None:
    shard: Any = {"shard_by": "user_id", "vindex": "hash"} if is_sharded else {}
    suffix = secrets.token_hex(6)

    class Base(DeclarativeBase):
        pass

    class Mail(MessageFailuresMixin, MessageQueueMixin, Base):
        __tablename__ = f"mail_{suffix}"
        __queue__ = QueueOptions(pausable=True, **shard)
        user_id: Mapped[int] = mapped_column(BigInteger)
        text: Mapped[str] = mapped_column(String(255), default="")

    class Bill(MessageQueueMixin, Base):
        __tablename__ = f"bill_{suffix}"
        __queue__ = QueueOptions(**shard)
        user_id: Mapped[int] = mapped_column(BigInteger)
        amount: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        due: Mapped[datetime | None]
        day: Mapped[date | None]
        grace: Mapped[timedelta | None] = mapped_column(Interval)
        color: Mapped[Color | None] = mapped_column(EnumType(Color))
        scan: Mapped[bytes | None]
        more: Mapped[dict[str, Any] | None] = mapped_column(JSON)
        is_paid: Mapped[bool | None]
        number: Mapped[UUID | None]
        weight: Mapped[float | None]
        size: Mapped[Literal["small", "big"] | None]
        at: Mapped[time | None]

    class Others(DeclarativeBase):
        pass

    class Reminder(MessageQueueMixin, Others):
        __tablename__ = f"reminder_{suffix}"
        __queue__ = QueueOptions(unique_by="user_id", **shard)
        user_id: Mapped[int] = mapped_column(BigInteger)
        text: Mapped[str] = mapped_column(String(255), default="")

    module.Others, module.Reminder = Others, Reminder  # type: ignore[attr-defined]
    module.Base, module.Mail, module.Bill = Base, Mail, Bill  # type: ignore[attr-defined]
    module.metadata, module.number = Base.metadata, 3  # type: ignore[attr-defined]


@contextmanager
def commands_on(engine: Engine, url: str, *, is_sharded: bool) -> Iterator[Commands]:
    """Return commands on new queues, whose tables are dropped at the end."""
    module = ModuleType(f"shop_{secrets.token_hex(6)}")
    _models(module, is_sharded)
    sys.modules[module.__name__] = module
    commands = Commands(module, engine, url)
    module.metadata.create_all(engine)
    module.Others.metadata.create_all(engine)
    try:
        yield commands
    finally:
        with Session(engine) as session, session.begin():
            commands.mail.resume(session)
        # The table of pauses stays, as other tests may be using it.
        for model in (commands.mail, commands.bill, module.Reminder):
            model.__table__.drop(engine)
        del sys.modules[module.__name__]
