"""Arguments and models of what changes waiting messages, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    StaticPool,
    String,
    TypeDecorator,
    bindparam,
    create_engine,
    func,
    literal,
    null,
    select,
    text,
    union_all,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    mapped_column,
    registry,
)
from sqlmodel import SQLModel

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidArgumentType,
    InvalidQueue,
    MessageQueueError,
    MessageQueueMixin,
    QueueOptions,
)
from sqla_vitess_messages.aio import wait
from sqla_vitess_messages.failures import MessageFailuresMixin


class Base(DeclarativeBase):
    pass


class OwnTime(TypeDecorator[datetime]):
    impl = DateTime
    cache_ok = True


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))


class Mail(MessageFailuresMixin, MessageQueueMixin, Base):
    __tablename__ = "mail"
    user_id: Mapped[int] = mapped_column(BigInteger, default=0)
    urgent: Mapped[bool] = mapped_column(Boolean, default=False)
    added: Mapped[datetime | None]
    own_time: Mapped[datetime | None] = mapped_column(OwnTime)


class Other(MessageQueueMixin, Base):
    __tablename__ = "other"


@pytest.fixture
def session() -> Any:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.mark.parametrize(
    ("given", "text_of_error"),
    [
        (True, "messages=True: expected an iterable of Mail or of ids, or"),
        (None, "messages=None"),
        ("abc", "messages='abc'"),
        (7, "messages=7"),
        (Mail(), "messages=<"),
        (select(Mail), "messages=<"),
        (text("1 = 1"), "messages=<"),
        ([True], "messages: True is neither a Mail nor the id of one"),
        (["7"], "messages: '7' is neither"),
        ([Other()], "messages: <"),
        ({"id": 7}, "messages: 'id' is neither"),
        (Mail.user_id, r"messages_or_where=Mail.user_id: is no condition but of the type BigInt"),
        (Mail.state, "messages_or_where=Mail.state: is no condition but of the type String"),
        (Mail.deliver_at, "messages_or_where=Mail.deliver_at: is no condition but of the type"),
        (Other.id == 3, "the condition is about other too"),
        (User.name == "ada", "the condition is about user too; write it about 'mail' alone"),
        (aliased(Mail).id == 3, "the condition is about an alias of mail too"),
        (select(Mail).subquery().c.id == 3, "the condition is about a subquery too"),
    ],
)
def test_anything_but_messages_ids_and_conditions_is_refused(
    session: Session, given: Any, text_of_error: str
) -> None:
    session.add(Mail())
    for change in (Mail.cancel, Mail.run_now):
        with pytest.raises(MessageQueueError, match=text_of_error):
            change(session, given)
    assert Mail.stats(session).ready == 1


def test_conditions_of_every_kind_work(session: Session) -> None:
    session.add(User(id=7, name="ada"))
    session.add_all([Mail(user_id=7), Mail(user_id=8, urgent=True), Mail(user_id=9)])
    ada = select(User.id).where(User.name == "ada")
    assert Mail.cancel(session, Mail.user_id.in_(ada)) == 1
    assert Mail.cancel(session, Mail.urgent) == 1
    assert Mail.cancel(session, Mail.created_at > datetime(2020, 1, 1, tzinfo=UTC)) == 1
    assert Mail.cancel(session, Mail.id > 0) == 0


def test_messages_may_come_from_anything_that_is_iterable(session: Session) -> None:
    mails = [Mail() for _ in range(4)]
    session.add_all(mails)
    session.flush()
    assert Mail.cancel(session, (mail for mail in mails[:1])) == 1
    assert Mail.cancel(session, {mail.id for mail in mails[1:2]}) == 1
    assert Mail.cancel(session, session.scalars(select(Mail))) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, InvalidArgument),
        ({"deliver_in": 5, "deliver_at": datetime.now(UTC)}, InvalidArgument),
        ({"deliver_in": -1}, InvalidArgument),
        ({"deliver_in": "5"}, InvalidArgumentType),
        ({"deliver_at": datetime(2030, 1, 1)}, InvalidArgument),
        ({"deliver_at": 5}, InvalidArgumentType),
    ],
)
def test_a_time_that_cannot_be_is_refused(
    session: Session, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="deliver_"):
        Mail.reschedule(session, [], **arguments)


def test_the_reason_of_a_retry_is_text(session: Session) -> None:
    mail = Mail()
    session.add(mail)
    session.flush()
    with pytest.raises(InvalidArgumentType, match="reason=5: expected a str"):
        mail.retry(session, 1, 5)  # type: ignore[arg-type]
    mail.retry(session, 60, "busy")
    session.refresh(mail)
    assert (mail.fail_reason, mail.state) == ("busy", "scheduled")  # It was never handed out.
    assert mail.failed_at is not None


def test_what_is_compared_with_a_time_has_a_time_zone(session: Session) -> None:
    late = datetime(2030, 1, 1)
    with pytest.raises(InvalidArgument, match="has no time zone"):
        session.scalars(select(Mail).where(Mail.deliver_at > late))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mail.created_at < func.now(),
        lambda: Mail.deliver_at >= func.now(),
        lambda: Mail.acked_at.between(datetime.now(UTC), func.now()),
        lambda: Mail.failed_at.in_([datetime.now(UTC), func.now()]),
        lambda: Mail.created_at.in_(select(func.now())),
        lambda: Mail.created_at == Mail.added,
        lambda: Mail.deliver_at != Mail.own_time,
        lambda: Mail.created_at < text("CURRENT_TIMESTAMP"),
    ],
)
def test_a_time_is_not_compared_with_sql_of_another_type(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgumentType, match=r"with SQL of the type .*; compare it with"):
        make()


def test_times_are_compared_with_each_other_with_parameters_and_with_nanoseconds(
    session: Session,
) -> None:
    session.add(Mail(deliver_in=60))
    now = datetime.now(UTC)
    latest = select(func.max(aliased(Mail).created_at)).scalar_subquery()
    for condition in (
        Mail.created_at < Mail.deliver_at,
        Mail.deliver_at > Mail.created_at,
        Mail.deliver_at > latest,
        Mail.deliver_at > bindparam("now"),
        Mail.deliver_at.between(now, now + timedelta(hours=1)),
        Mail.created_at == Mail.time_created,
        Mail.acked_at.is_(None),
        Mail.acked_at == null(),
    ):
        found = session.scalars(select(Mail).where(condition), {"now": now})
        assert len(found.all()) == 1, str(condition)


def test_states_are_compared_with_sql(session: Session) -> None:
    session.add(Mail())
    ready = select(literal("ready"))
    for condition in (
        Mail.state.in_(ready),
        Mail.state.in_(union_all(ready, select(literal("dead")))),
        Mail.state.in_(["dead", bindparam("one", "ready")]),
        Mail.state.in_(name for name in ["dead", "ready"]),
        Mail.state.not_in(select(literal("dead"))),
        Mail.state == ready.scalar_subquery(),
        Mail.state != bindparam("one", "dead"),
    ):
        assert len(session.scalars(select(Mail).where(condition)).all()) == 1, str(condition)
    with pytest.raises(InvalidArgument, match="state 'late'"):
        Mail.state.in_(["late", bindparam("one")])


def test_an_id_that_no_row_can_have_is_of_no_message(session: Session) -> None:
    for change in (Mail.cancel, Mail.run_now, Mail.requeue):
        assert change(session, [2**63, 2**70, -(2**70)]) == 0


def test_dataclasses_and_sqlmodels_keep_failures() -> None:
    class Data(MappedAsDataclass, DeclarativeBase):
        pass

    class Job(MessageFailuresMixin, MessageQueueMixin, Data):
        __tablename__ = "job"
        body: Mapped[str]

    class Pydantic(SQLModel, registry=registry()):
        pass

    class Task(MessageFailuresMixin, MessageQueueMixin, Pydantic, table=True):
        body: str

    at = datetime(2100, 1, 1, tzinfo=UTC)
    for model in (Job, Task):
        message = model(body="x", deliver_at=at)
        assert (message.state, message.deliver_at, message.failed_at) == ("scheduled", at, None)
        message.deliver_at = datetime(2000, 1, 1, tzinfo=UTC)
        assert message.state == "ready"
        assert list(model.__table__.c.keys())[-1] == "failed_epoch" or "body" in model.__table__.c
    assert list(Task.model_fields) == ["body"]


def test_a_column_of_the_models_own_is_no_mark_of_a_failure() -> None:
    class Job(MessageQueueMixin, Base):
        __tablename__ = "job"
        failed_epoch: Mapped[int]

    with pytest.raises(InvalidArgument, match="only with MessageFailuresMixin"):
        Job.state.in_(["retrying"])


@pytest.mark.parametrize("name", ["state", "created_at", "acked_at", "cancel", "wait", "pause"])
def test_the_names_of_the_attributes_are_taken(name: str) -> None:
    class Fresh(DeclarativeBase):
        pass

    body = {"__tablename__": "taken", name: mapped_column(String(5))}
    with pytest.raises(InvalidQueue, match=f"Taken.{name}: the name belongs to MessageQueueMixin"):
        type("Taken", (MessageQueueMixin, Fresh), body)


def test_whether_a_queue_can_be_paused_is_a_bool() -> None:
    with pytest.raises(InvalidArgumentType, match="pausable='yes': expected True or False"):
        QueueOptions(pausable="yes")  # type: ignore[arg-type]


def test_a_coroutine_waits_for_a_queues_messages_only() -> None:
    with pytest.raises(InvalidArgumentType, match="model"):
        asyncio.run(wait(User, "sqlite+aiosqlite://", []))  # type: ignore[type-var]
