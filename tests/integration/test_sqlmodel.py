"""Queues made with SQLModel, on every database and transport."""

from __future__ import annotations

import copy
import pickle
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import BigInteger, Engine, insert
from sqlalchemy.orm import registry
from sqlmodel import Field, Session, SQLModel, select

from sqla_vitess_messages import MessageQueueMixin, QueueOptions, Subscriber, Worker, random_id
from tests.backends import EVERYWHERE, Backend, eventually


class Payload(SQLModel):
    body: str = Field(max_length=255)
    note: str | None = None


@pytest.fixture
def mail(engine: Engine, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """A queue whose payload is in a model of its own, as SQLModel's users share fields."""
    options: dict[str, Any] = {"ack_wait": 10, "poller_interval": 0.2, "min_backoff": 0.2}
    attributes: dict[str, Any] = {}
    if backend.server == "sharded":
        options |= {"shard_by": "tenant", "vindex": "hash"}
        attributes["__annotations__"] = {"tenant": int}
        attributes["tenant"] = Field(default_factory=random_id, sa_type=BigInteger)
    name = f"queue_{secrets.token_hex(6)}"
    body = {
        "__module__": __name__,
        "__tablename__": name,
        "__queue__": QueueOptions(**options),
        **attributes,
    }

    class Base(SQLModel, registry=registry()):
        pass

    model: Any = type(SQLModel)(name, (MessageQueueMixin, Payload, Base), body, table=True)
    monkeypatch.setitem(globals(), name, model)  # So that it can be pickled.
    model.metadata.create_all(engine)
    yield model
    model.metadata.drop_all(engine)


@pytest.mark.parametrize("backend", EVERYWHERE, indirect=True, ids=lambda b: b.name)
def test_messages_are_enqueued_received_and_settled(
    engine: Engine, mail: type[Any], subscribe: Callable[..., Any]
) -> None:
    with Session(engine) as session, session.begin():
        session.add(mail(body="late", deliver_in=3600))
        session.add_all([mail(body="added", priority=7), mail(body="failed")])
        session.execute(insert(mail).values([{"body": "inserted"}]))
    subscriber = subscribe(mail)
    received = {message.body: message for message in (subscriber.get(20) for _ in range(3))}
    assert sorted(received) == ["added", "failed", "inserted"]
    assert (received["added"].priority, received["failed"].priority) == (7, 50)
    received["added"] = pickle.loads(pickle.dumps(received["added"]))  # noqa: S301
    received["inserted"] = copy.deepcopy(received["inserted"])
    with Session(engine) as session, session.begin():
        received["added"].note = "changed"
        received["failed"].fail(session)
        mail.ack_all(session, [received["added"], received["inserted"]])
    with Session(engine) as session:
        stats = mail.stats(session)
    assert (stats.acked, stats.dead, stats.scheduled, stats.leased) == (2, 1, 1, 0)


@pytest.mark.parametrize("backend", EVERYWHERE[:4], indirect=True, ids=lambda b: b.name)
def test_a_worker_saves_what_its_handler_changes(engine: Engine, url: str, mail: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.add_all([mail(body=str(number)) for number in range(20)])

    def handle(message: Any, session: Any) -> None:
        message.note = f"handled {message.body}"

    worker = Worker(Subscriber(mail, url), handle, lambda: Session(engine))
    worker.start()
    try:
        with Session(engine) as session:
            eventually(lambda: session.rollback() or mail.stats(session).acked == 20)
            notes = {message.body: message.note for message in session.exec(select(mail))}
    finally:
        worker.stop()
    assert notes == {str(number): f"handled {number}" for number in range(20)}
