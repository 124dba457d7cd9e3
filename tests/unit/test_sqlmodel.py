"""SQLModel: its classes are pydantic models, of which the queue's own columns are no fields.

Annotations aren't postponed here, because SQLModel's relationships don't support that.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy import StaticPool, create_engine, insert
from sqlalchemy.orm import registry
from sqlmodel import Field, Relationship, Session, SQLModel, select

from sqla_vitess_messages import InvalidArgument, InvalidQueue, MessageQueueMixin, QueueOptions
from sqla_vitess_messages.headers import MessageHeadersMixin

PORTABLE = ["time_scheduled", "id", "time_next", "epoch", "time_created", "time_acked", "priority"]


class Base(SQLModel, registry=registry()):
    pass


class Reader(Base, table=True):
    id: int | None = Field(default=None, primary_key=True)
    mails: list["Mail"] = Relationship(back_populates="reader")


class Mail(MessageQueueMixin, Base, table=True):
    __queue__ = QueueOptions(ack_wait=7)
    address: str = Field(max_length=100)
    note: str | None = None
    reader_id: int | None = Field(default=None, foreign_key="reader.id")
    reader: Reader | None = Relationship(back_populates="mails")


class Traced(MessageHeadersMixin, MessageQueueMixin, Base, table=True):
    text: str = ""


@pytest.fixture
def session() -> Any:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_the_table_is_that_of_any_queue() -> None:
    names = Mail.__table__.columns.keys()
    assert names == [*PORTABLE, "address", "note", "reader_id"]
    assert Mail.__table__.comment.startswith("vitess_message,vt_ack_wait=7,")
    assert [index.name for index in Mail.__table__.indexes if "poller" in index.name]


def test_the_constructor_takes_the_arguments_of_a_message() -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    assert Mail(address="a", deliver_at=at).deliver_at == at
    message = Mail(address="a", deliver_in=60, priority=3, id=17, reader=Reader(id=4))
    assert (message.address, message.priority, message.id, message.epoch) == ("a", 3, 17, 0)
    assert abs(message.time_next - time.time_ns() - 60 * 10**9) < 5 * 10**9
    assert message.time_scheduled == message.time_next
    assert message.reader.mails == [message]
    with pytest.raises(InvalidArgument, match="one of the two"):
        Mail(address="a", deliver_in=1, deliver_at=at)


def test_attributes_can_be_set_before_and_after_it_is_enqueued(session: Session) -> None:
    message = Mail(address="a")
    message.deliver_in = 60
    message.priority = 3
    session.add(message)
    session.commit()
    assert (message.priority, Mail.stats(session).scheduled) == (3, 1)
    message.priority = 4
    message.address = "b"
    session.commit()
    found = session.exec(select(Mail).where(Mail.priority == 4)).one()
    assert found.address == "b"
    with pytest.raises(InvalidArgument, match="retry"):
        found.deliver_in = 5


def test_what_is_neither_a_field_nor_a_column_is_refused_as_in_any_sqlmodel() -> None:
    with pytest.raises(ValueError, match="has no field"):
        Mail(address="a").adress = "b"


def test_other_mixins_work_too(session: Session) -> None:
    message = Traced(text="x", headers={"trace": "1"})
    session.add(message)
    session.commit()
    assert message.headers == {"trace": "1"}
    message.headers = {"trace": "2"}
    session.commit()
    assert session.exec(select(Traced)).one().headers == {"trace": "2"}


def test_what_pydantic_generates_has_the_fields_alone(session: Session) -> None:
    assert list(Mail.model_json_schema()["properties"]) == ["address", "note", "reader_id"]
    message = Mail(address="a", priority=3)
    session.add(message)
    session.commit()
    session.refresh(message)
    assert message.model_dump() == {"address": "a", "note": None, "reader_id": None}
    assert "priority" not in repr(message)
    copied = Mail.model_validate(message, update={"note": "copied"})
    assert (copied.address, copied.note) == ("a", "copied")
    assert copied.id != message.id
    session.add(copied)
    session.commit()
    assert Mail.stats(session).ready == 2
    with pytest.raises(ValidationError):
        Mail.model_validate({"note": "without an address"})


def test_statements_make_messages(session: Session) -> None:
    session.execute(insert(Mail).values([{"address": "a"}, {"address": "b"}]))
    session.execute(insert(Mail), [{"address": "c", "priority": 9}])
    session.commit()
    messages = session.exec(select(Mail)).all()
    assert len({message.id for message in messages}) == 3
    for message in messages:
        message.ack(session)
    session.commit()
    assert Mail.stats(session).acked == 3


def test_an_endpoint_of_fastapi_takes_and_returns_messages(session: Session) -> None:
    app = FastAPI()

    @app.post("/mails")
    async def post(mail: Mail, delay: int) -> Mail:
        mail = Mail.model_validate(mail)
        mail.deliver_in = delay
        session.add(mail)
        session.commit()
        session.refresh(mail)
        return mail

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/mails?delay=60", json={"address": "a"})

    response = asyncio.run(request())
    assert response.json() == {"address": "a", "note": None, "reader_id": None}
    assert Mail.stats(session).scheduled == 1


def test_a_base_without_a_table_has_common_fields() -> None:
    class Common(MessageQueueMixin, Base):
        __queue__ = QueueOptions(layout="minimal")
        common: int

    class Message(Common, table=True):
        text: str

    assert Message.__table__.columns.keys() == [
        "id", "priority", "epoch", "time_next", "time_acked", "common", "text",
    ]  # fmt: skip
    assert Message(common=1, text="x", deliver_in=60, priority=1).priority == 1
    Base.metadata.remove(Message.__table__)


def test_the_mixin_may_follow_sqlmodel() -> None:
    class Late(Base, MessageQueueMixin, table=True):
        text: str

    assert Late.__table__.columns.keys() == [*PORTABLE, "text"]
    assert Late(text="x", priority=1).priority == 1
    Base.metadata.remove(Late.__table__)


@pytest.mark.filterwarnings("ignore:Field name", "ignore:Unmanaged access")
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("id", Field(default=None, primary_key=True)),
        ("priority", Field(default=50)),
        ("ack", Field(default=0)),
    ],
)
def test_a_field_named_like_an_attribute_of_the_mixin_is_refused(name: str, field: Any) -> None:
    class Other(SQLModel, registry=registry()):
        pass

    body = {"__annotations__": {name: int}, name: field, "__module__": __name__}
    with pytest.raises(InvalidQueue, match=f"{name}: the name belongs to MessageQueueMixin"):
        type(SQLModel)("Refused", (MessageQueueMixin, Other), body, table=True)
    assert not Other.metadata.tables
