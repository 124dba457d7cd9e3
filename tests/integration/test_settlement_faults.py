"""A settlement that fails spoils no other, and each future has a result in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import CheckConstraint, Engine, String, make_url, select, update
from sqlalchemy.orm import Session, mapped_column

from sqla_vitess_messages import AlreadySettled, SettlementError, SubscriberClosed
from sqla_vitess_messages.rows.lease import leases_of
from sqla_vitess_messages.rows.settle import extend_unlocked
from sqla_vitess_messages.transports import engines
from tests.backends import BACKENDS, Backend, enqueue, row
from tests.faults import engine_of
from tests.integration.test_grouped import receive
from tests.proxy import Proxy

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]

WITH_ROW_LOCKS = [backend for backend in BACKENDS if backend.server is not None]


@contextmanager
def locked(engine: Engine, *messages: Any) -> Iterator[Session]:
    """Lock the rows of messages for the length of a block, as a handler's transaction does."""
    with Session(engine) as session:
        model = type(messages[0])
        ids = [message.id for message in messages]
        session.execute(select(model.id).where(model.id.in_(ids)).with_for_update()).all()
        yield session
        session.rollback()


@pytest.mark.parametrize("backend", WITH_ROW_LOCKS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("method", ["ack", "fail", "retry"])
def test_a_locked_row_spoils_no_other_settlement(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, method: str
) -> None:
    queue = make_queue(ack_wait=60)
    enqueue(engine, *(queue() for _ in range(24)))
    subscriber = subscribe(queue)
    messages = receive(subscriber, 24)
    held, others = messages[3:6], [*messages[:3], *messages[6:20]]
    with locked(engine, *held):
        futures = {message.id: subscriber.ack(message) for message in others}
        refused = [getattr(subscriber, method)(message) for message in held]
        for future in futures.values():
            future.result(20)
        for message, future in zip(held, refused, strict=True):
            error = future.exception(20)
            assert isinstance(error, SettlementError)
            assert error.message_ids == (message.id,)
            assert "locked" in str(error)
        # A later group isn't held up.
        later = [subscriber.ack(message) for message in messages[20:]]
        for future in later:
            future.result(20)
    for message in others:
        assert row(engine, message).time_acked is not None
    for message in held:  # Their lease holds still.
        subscriber.ack(message).result(20)


@pytest.mark.parametrize("backend", WITH_ROW_LOCKS, ids=lambda backend: backend.name)
def test_a_row_that_is_gone_or_acked_is_told_from_one_that_is_locked(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=60)
    enqueue(engine, *(queue() for _ in range(4)))
    subscriber = subscribe(queue)
    held, gone, acked, fine = receive(subscriber, 4)
    with Session(engine) as session, session.begin():
        session.execute(queue.__table__.delete().where(queue.__table__.c.id == gone.id))
        acked.ack(session)
    with locked(engine, held):
        futures = [subscriber.ack(message) for message in (held, gone, acked, fine)]
        errors = [future.exception(20) for future in futures]
    assert isinstance(errors[0], SettlementError)
    assert "locked" in str(errors[0])
    assert isinstance(errors[1], AlreadySettled)
    # In a sharded keyspace, its row may still be locked by the attempt before.
    assert isinstance(errors[2], SettlementError)
    assert errors[3] is None


@pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in {"sqlite", "mariadb", "sqlite-asyncio"}],
    ids=lambda backend: backend.name,
)
def test_a_row_that_the_database_refuses_spoils_no_other_settlement(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    """MySQL 8.0.15, and so this Vitess, ignores CHECK constraints."""
    queue = make_queue(
        None,
        {
            "fail_reason": mapped_column(String(100)),
            "__table_args__": (CheckConstraint("body <> 'refused' OR time_acked IS NULL"),),
        },
        ack_wait=60,
    )
    enqueue(engine, *(queue(body="refused" if number == 3 else "") for number in range(10)))
    subscriber = subscribe(queue)
    messages = receive(subscriber, 10)
    futures = {message.id: subscriber.ack(message) for message in messages}
    for message in messages:
        error = futures[message.id].exception(20)
        assert (error is None) == (message.body != "refused")
        assert (row(engine, message).time_acked is None) == (message.body == "refused")


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    made = make_url(url)
    with Proxy(f"{made.host}:{made.port}") as proxy:
        yield proxy


def through(proxy: Proxy, url: str) -> Any:
    host, _, port = proxy.address.rpartition(":")
    return make_url(url).set(host=host, port=int(port))


HANGING = [
    Backend("mysql", "mysql", "pull"),
    Backend("mysql-asyncio", "mysql", "pull", "asyncmy"),
    Backend("vitess", "vtgate", "pull"),
]


@pytest.mark.parametrize("backend", HANGING, ids=lambda backend: backend.name)
def test_close_resolves_every_future_though_the_server_hangs(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, proxy: Proxy, url: str
) -> None:
    queue = make_queue(ack_wait=60)
    enqueue(engine, *(queue() for _ in range(6)))
    subscriber = subscribe(queue, through(proxy, url))
    messages = receive(subscriber, 6)
    proxy.stall()
    futures = [subscriber.ack(message) for message in messages[:3]]
    time.sleep(0.1)
    futures += [subscriber.ack(message) for message in messages[3:]]
    began = time.monotonic()
    subscriber.close()
    assert time.monotonic() - began < 4
    for future in futures:
        assert future.done()
        assert isinstance(future.exception(), SubscriberClosed)
        assert "not known" in str(future.exception())
    proxy.resume()


@pytest.mark.parametrize("backend", HANGING, ids=lambda backend: backend.name)
def test_a_server_that_hangs_fails_settlements_in_bounded_time(
    engine: Engine,
    make_queue: MakeQueue,
    subscribe: Subscribe,
    proxy: Proxy,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "READ_TIMEOUT", 1.0)
    monkeypatch.setattr("sqla_vitess_messages.aio.runtime.READ_TIMEOUT", 1.0)
    queue = make_queue(ack_wait=60)
    enqueue(engine, *(queue() for _ in range(3)))
    subscriber = subscribe(queue, through(proxy, url))
    messages = receive(subscriber, 3)
    proxy.stall()
    for future in [subscriber.ack(message) for message in messages]:
        assert future.exception(15) is not None
    proxy.resume()
    for message in messages:
        assert subscriber.ack(message).exception(20) in {None} or row(engine, message).time_acked


@pytest.mark.parametrize(
    "backend",
    [backend for backend in WITH_ROW_LOCKS if backend.transport == "auto"],
    ids=lambda backend: backend.name,
)
def test_a_renewal_that_fails_concerns_its_message_alone(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(ack_wait=10)
    enqueue(engine, *(queue() for _ in range(7)))
    subscriber = subscribe(queue)
    messages = receive(subscriber, 7)
    held, lost, gone, *others = messages
    with Session(engine) as session, session.begin():
        session.execute(
            update(queue.__table__)
            .where(queue.__table__.c.id == lost.id)
            .values(epoch=queue.__table__.c.epoch + 1)
        )
        session.execute(queue.__table__.delete().where(queue.__table__.c.id == gone.id))
    before = {message.id: row(engine, message).time_next for message in others}
    with locked(engine, held):
        assert set(subscriber.extend(messages, 3600)) == {lost, gone}
    for message in others:
        assert row(engine, message).time_next > before[message.id]


def test_an_error_for_one_lease_keeps_no_other_from_being_extended(
    engine: Engine, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    from sqla_vitess_messages import Subscriber

    queue = make_queue(ack_wait=10)
    enqueue(engine, *(queue() for _ in range(5)))
    with Subscriber(queue, engine) as subscriber:
        messages = receive(subscriber, 5)
        leases = leases_of(queue, messages)

        def refuse(_leases: Any) -> None:
            raise LookupError("it can't be confirmed")

        leases[2]._confirm = refuse
        before = [row(engine, message).time_next for message in messages]
        assert extend_unlocked(queue, engine_of(subscriber), leases, 3600) == []
    after = [row(engine, message).time_next for message in messages]
    changed = [later > sooner for later, sooner in zip(after, before, strict=True)]
    assert changed == [True, True, False, True, True]
    assert "it can't be confirmed" in caplog.text
