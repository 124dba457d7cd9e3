"""A row that can't be loaded is retried and fails by itself; the others flow."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from sqlalchemy import (
    Engine,
    Enum,
    LargeBinary,
    String,
    TypeDecorator,
    column,
    event,
    select,
    table,
    text,
    update,
)
from sqlalchemy.orm import ORMExecuteState, Session, mapped_column, with_loader_criteria

from sqla_vitess_messages.events import Dead, Event
from sqla_vitess_messages.rows.states import DEAD
from tests.backends import BACKENDS, enqueue, eventually

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]
Work = Callable[..., Any]


class Color(enum.Enum):
    red = "red"


class Loud(TypeDecorator[str]):
    """Refuses a value that an older version of the program has written."""

    impl = String(20)
    cache_ok = True

    def process_result_value(self, value: Any, _dialect: Any) -> str:
        if value.islower():
            raise ValueError(f"{value!r} isn't loud")
        return str(value)


class Decoded(TypeDecorator[str]):
    impl = LargeBinary(20)
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> bytes:
        return str(value).encode()

    def process_result_value(self, value: Any, _dialect: Any) -> str:
        return bytes(value).decode()


class Kind(NamedTuple):
    """A type, a value with what is stored for it, what it can't read, and a part of the error."""

    type: Any
    value: object
    stored: object
    unreadable: object
    error: str


KINDS = {
    "enum": Kind(Enum(Color, native_enum=False, length=20), Color.red, "red", "green", "green"),
    "decorator": Kind(Loud, "HEY", "HEY", "hey", "isn't loud"),
    "bytes": Kind(Decoded, "text", b"text", b"\xff\xfe", "codec"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def queue(make_queue: MakeQueue, kind: str) -> type[Any]:
    attributes = {
        "payload": mapped_column(KINDS[kind].type, nullable=False),
        "fail_reason": mapped_column(String(200)),
    }
    return make_queue(None, attributes, ack_wait=20, min_backoff=0.05, max_backoff=0.1)


def enqueue_with_bad_one(engine: Engine, queue: type[Any], kind: str, others: int = 6) -> Any:
    """Enqueue messages, make a row in their middle impossible to load, and return its message."""
    messages = [queue(body=str(number), payload=KINDS[kind].value) for number in range(others + 1)]
    poisoned = messages[others // 2]
    raw = table(queue.__tablename__, column("id"), column("payload"))
    with Session(engine) as session, session.begin():
        session.add_all(messages)
        session.flush()
        session.execute(
            update(raw).where(raw.c.id == poisoned.id).values(payload=KINDS[kind].unreadable)
        )
        session.expunge_all()
    return poisoned


def state_of(engine: Engine, message: Any) -> Any:
    """Return the columns of a row but for the one that can't be loaded."""
    columns = type(message).__table__.c
    wanted = select(columns.time_next, columns.epoch, columns.fail_reason)
    with engine.connect() as connection:
        return connection.execute(wanted.where(columns.id == message.id)).one()


def is_dead(engine: Engine, message: Any) -> bool:
    found: bool = state_of(engine, message).time_next == DEAD
    return found


def test_a_worker_fails_it_after_its_attempts_and_handles_the_others(
    engine: Engine, queue: type[Any], kind: str, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = enqueue_with_bad_one(engine, queue, kind)
    handled: list[str] = []
    work(queue, lambda message, _session: handled.append(message.body))
    eventually(lambda: is_dead(engine, poisoned))
    eventually(lambda: len(handled) == 6)
    found = state_of(engine, poisoned)
    assert KINDS[kind].error in found.fail_reason
    assert "can't be loaded" in found.fail_reason
    assert found.epoch % 65_536 == 2  # Both attempts of the policy.
    enqueue(engine, queue(body="later", payload=KINDS[kind].value))
    eventually(lambda: "later" in handled)
    assert any(record.__dict__.get("message_id") == poisoned.id for record in caplog.records)


def test_a_subscriber_goes_on(
    engine: Engine, queue: type[Any], kind: str, subscribe: Subscribe
) -> None:
    events: list[Event] = []
    poisoned = enqueue_with_bad_one(engine, queue, kind)
    subscriber = subscribe(queue, max_attempts=2, on_event=events.append)
    received = {}
    while len(received) < 6:
        for message in subscriber.get_many(10, 15):
            received[message.body] = subscriber.ack(message)
    assert "3" not in received
    eventually(lambda: is_dead(engine, poisoned))
    eventually(
        lambda: any(isinstance(one, Dead) and one.message_id == poisoned.id for one in events)
    )
    enqueue(engine, queue(body="later", payload=KINDS[kind].value))
    assert subscriber.get(15).body == "later"


@pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.driver is None],
    ids=lambda backend: backend.name,
)
def test_it_can_be_requeued_when_the_program_can_read_it(
    engine: Engine,
    queue: type[Any],
    kind: str,
    subscribe: Subscribe,
    caplog: pytest.LogCaptureFixture,
) -> None:
    poisoned = enqueue_with_bad_one(engine, queue, kind, others=2)
    subscriber = subscribe(queue, max_attempts=1)
    eventually(lambda: is_dead(engine, poisoned))
    good = [subscriber.get(15) for _ in range(2)]
    with Session(engine) as session, session.begin():
        good[0].fail(session)
        good[1].ack(session)
    with Session(engine) as session, caplog.at_level(logging.WARNING):
        assert [message.id for message in queue.dead(session)] == [good[0].id]
    assert f"message {poisoned.id} can't be loaded" in caplog.text
    raw = table(queue.__tablename__, column("id"), column("payload"))
    with Session(engine) as session, session.begin():
        session.execute(
            update(raw).where(raw.c.id == poisoned.id).values(payload=KINDS[kind].stored)
        )
        assert queue.requeue(session) == 2
    again = {subscriber.get(15).id for _ in range(2)}
    assert again == {poisoned.id, good[0].id}


@pytest.fixture
def hide_messages() -> Iterator[Callable[[type[Any]], None]]:
    """Return a function by which no session finds the messages of a queue, until the test ends."""
    listeners: list[Callable[..., None]] = []

    def hide(model: type[Any]) -> None:
        def filter_messages(state: ORMExecuteState) -> None:
            if state.is_select:
                criteria = with_loader_criteria(model, model.body == "of another tenant")
                state.statement = state.statement.options(criteria)

        listeners.append(filter_messages)
        event.listen(Session, "do_orm_execute", filter_messages)

    yield hide
    for listener in listeners:
        event.remove(Session, "do_orm_execute", listener)


def test_what_listeners_hide_from_all_sessions_is_delivered(
    engine: Engine,
    make_queue: MakeQueue,
    work: Work,
    hide_messages: Callable[[type[Any]], None],
) -> None:
    queue = make_queue()
    hide_messages(queue)
    found: list[Any] = []

    def handle(message: Any, session: Session) -> None:
        found.append(session.scalars(select(queue)).first())
        if message.attempts == 0 and len(found) == 1:
            session.execute(text("no statement"))  # The next attempt loads the message again.

    work(queue, handle)
    for _ in range(3):  # A stream may bring those that aren't pulled.
        enqueue(engine, queue())
    with Session(engine) as session:
        eventually(lambda: session.rollback() or queue.stats(session).acked == 3)
    assert set(found) == {None}
