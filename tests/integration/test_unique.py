"""Unique queues: at most one unsettled message for each key, which can be skipped or replaced."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    ForeignKey,
    String,
    UniqueConstraint,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from sqla_vitess_messages import (
    AlreadyEnqueued,
    AlreadySettled,
    Discard,
    InvalidArgument,
    LeaseLost,
    Pull,
    RetryPolicy,
    emits,
    on_commit,
    random_id,
)
from sqla_vitess_messages.failures import MessageFailuresMixin
from sqla_vitess_messages.rows.transient import is_deadlock, retry_transaction
from sqla_vitess_messages.testing import assert_enqueued, drain, enqueued, travelling_clock
from sqla_vitess_messages.transports.base import BaseTransport
from tests.async_adapter import sleep
from tests.backends import STREAMS, Backend, async_url, enqueue, eventually, row

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Any]


def key_columns() -> dict[str, Any]:
    return {
        "tenant": mapped_column("tenant", BigInteger, nullable=False, default=1),
        "product": mapped_column("product", BigInteger, nullable=False),
    }


@pytest.fixture
def unique(make_queue: MakeQueue) -> type[Any]:
    """A queue with one message for each product of a tenant."""
    return make_queue(attributes=key_columns(), unique_by=("tenant", "product"))


def put(engine: Engine, message: Any, if_exists: str = "replace") -> bool:
    """Enqueue a message in a transaction of its own."""

    def transaction() -> bool:
        with Session(engine) as session, session.begin():
            return bool(type(message).enqueue(session, message, if_exists=if_exists))

    return retry_transaction(transaction)


def bodies(engine: Engine, model: type[Any]) -> list[str]:
    """Return the bodies of the unsettled messages."""
    with Session(engine) as session:
        return sorted(message.body for message in enqueued(session, model))


def get(subscriber: Any, timeout: float = 20) -> Any:
    message = subscriber.get(timeout=timeout)
    assert message is not None
    return message


def wait_until_postponed(engine: Engine, model: type[Any]) -> None:
    """Wait until Vitess has written that a stream has delivered all messages.

    Before that, it sends a message again that is replaced.
    """

    def is_postponed() -> bool:
        with Session(engine) as session:
            return bool(model.stats(session).ready == 0)

    eventually(is_postponed)


def ack(engine: Engine, message: Any) -> None:
    def transaction() -> None:
        with Session(engine) as session, session.begin():
            message.ack(session)

    retry_transaction(transaction)


def body_of_each(session: Session, model: type[Any]) -> dict[int, str]:
    found = session.execute(select(model.product, model.body))
    return {product: body for product, body in found}  # noqa: C416  # Its rows are no tuples.


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements of an engine."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def test_skip_leaves_the_message_that_is_there(engine: Engine, unique: type[Any]) -> None:
    assert put(engine, unique(product=7, body="first"), "skip")
    assert not put(engine, unique(product=7, body="second"), "skip")
    assert put(engine, unique(product=8, body="other"), "skip")
    assert bodies(engine, unique) == ["first", "other"]


def test_the_same_instance_can_be_enqueued_again(engine: Engine, unique: type[Any]) -> None:
    message = unique(product=7)
    with Session(engine) as session:
        assert unique.enqueue(session, message, if_exists="skip")
        assert not unique.enqueue(session, message, if_exists="skip")
        session.rollback()
        assert unique.enqueue(session, message, if_exists="skip")
        session.commit()
    assert len(bodies(engine, unique)) == 1


def test_what_was_enqueued_can_be_changed_and_waited_for(engine: Engine, unique: type[Any]) -> None:
    first, skipped, replacing, second = (unique(product=n) for n in (7, 7, 7, 8))
    for message, if_exists in (
        (first, "raise"),
        (skipped, "skip"),
        (replacing, "replace"),
        (second, "replace"),
    ):
        put(engine, message, if_exists)
    with Session(engine) as session, session.begin():
        assert unique.reschedule(session, [first, second], deliver_in=60) == 2
        assert unique.run_now(session, [first]) == 1
        assert unique.cancel(session, [second]) == 1
        for other in (skipped, replacing):
            with pytest.raises(InvalidArgument, match="has no row of its own"):
                unique.cancel(session, [other])
    with pytest.raises(TimeoutError):
        unique.wait(engine, [first], 0)
    with Session(engine) as session, session.begin():
        session.scalars(select(unique).where(unique.product == 7)).one().ack(session)
    assert unique.wait(engine, [second, first], 20) == ["purged", "acked"]


def test_replace_gives_a_waiting_message_payload_priority_and_time(
    engine: Engine, unique: type[Any]
) -> None:
    first = unique(product=7, body="first", priority=90, deliver_in=60)
    assert put(engine, first)
    second = unique(product=7, body="second", priority=10, deliver_in=1000)
    assert put(engine, second)
    found = row(engine, first)
    assert (found.body, found.priority) == ("second", 10)
    assert found.time_next == second.time_next
    assert put(engine, unique(product=7, body="third", deliver_in=5))
    with Session(engine) as session:
        [message] = enqueued(session, unique)
        assert (message.body, message.priority, message.attempts) == ("third", 50, 0)
        assert 0 < message.deliver_in.total_seconds() <= 5
        assert unique.stats(session).scheduled == 1


def test_raise_names_the_keys_and_enqueues_nothing_of_the_batch(
    engine: Engine, unique: type[Any]
) -> None:
    put(engine, unique(product=7, body="first"))
    with Session(engine) as session, session.begin():
        batch = [unique(product=product, body="batch") for product in (6, 7, 8)]
        with pytest.raises(AlreadyEnqueued, match="tenant=1, product=7") as raised:
            unique.enqueue_all(session, batch)
        assert raised.value.keys == ((1, 7),)
    assert bodies(engine, unique) == ["first"]
    with Session(engine) as session, pytest.raises(AlreadyEnqueued):
        unique.enqueue(session, unique(product=7))


def test_session_add_fails_at_the_flush(engine: Engine, unique: type[Any]) -> None:
    enqueue(engine, unique(product=7))
    with Session(engine) as session:
        session.add(unique(product=7))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        with pytest.raises(IntegrityError):
            session.execute(insert(unique), [{"product": 7}])


def test_settled_messages_take_no_key(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    for settle in ("ack", "fail", "fail"):
        assert put(engine, unique(product=7), "skip")
        message = get(subscriber)
        assert not put(engine, unique(product=7), "skip")
        with Session(engine) as session, session.begin():
            getattr(message, settle)(session)
    with Session(engine) as session:
        assert unique.stats(session).dead == 2
        assert unique.stats(session).acked == 1


def test_requeue_leaves_the_dead_whose_key_is_taken(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    for product in (7, 7, 8, 9):
        put(engine, unique(product=product))
        with Session(engine) as session, session.begin():
            get(subscriber).fail(session)
    subscriber.close()
    put(engine, unique(product=9, body="new"))
    with Session(engine) as session, session.begin():
        assert unique.requeue(session) == 2
        assert unique.requeue(session) == 0
        assert unique.stats(session).dead == 2
    with Session(engine) as session:
        assert sorted(message.product for message in enqueued(session, unique)) == [7, 8, 9]
        dead = unique.dead(session)
        assert sorted(message.product for message in dead) == [7, 9]
        assert unique.requeue(session, dead) == 0
        assert unique.purge_dead(session) == 2


def test_many_are_enqueued_by_a_few_statements(engine: Engine, unique: type[Any]) -> None:
    put(engine, unique(product=3, body="there"))
    batch = [unique(product=n % 1000, body=str(n)) for n in range(1200)]
    with Session(engine) as session, session.begin():
        assert unique.enqueue_all(session, [*batch], if_exists="skip") == 999
        found = body_of_each(session, unique)
        assert (found[3], found[4]) == ("there", "4")
        with counted(engine) as statements:
            assert unique.enqueue_all(session, batch, if_exists="replace") == 1000
        assert len(statements) <= 2 * 2
        assert session.scalar(select(func.count()).select_from(unique)) == 1000
        found = body_of_each(session, unique)
        assert (found[3], found[500]) == ("1003", "500")


def test_a_replacement_of_a_held_message_comes_after_the_ack_once(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    put(engine, unique(product=7, body="old"))
    message = get(subscriber)
    wait_until_postponed(engine, unique)
    for body in ("new", "newer", "newest"):
        put(engine, unique(product=7, body=body, priority=20))
    with Session(engine) as session:
        assert unique.stats(session).leased == 1
    assert subscriber.get(timeout=1) is None
    ack(engine, message)
    new = get(subscriber)
    assert (new.id, new.body, new.priority, new.attempts) == (message.id, "newest", 20, 0)
    with Session(engine) as session, pytest.raises(AlreadySettled):
        message.ack(session)
    ack(engine, new)
    assert subscriber.get(timeout=1) is None
    assert not bodies(engine, unique)


def test_instances_and_sql_agree_on_the_state_of_what_was_replaced(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    base = type("Base", (MessageFailuresMixin, DeclarativeBase), {})
    model = make_queue(base=base, attributes=key_columns(), unique_by=("tenant", "product"))

    def states() -> tuple[str, str]:
        with Session(engine) as session:
            [(message, state)] = session.execute(select(model, model.state))
            return message.state, state

    subscriber = subscribe(model)
    put(engine, model(product=7))
    message = get(subscriber)
    wait_until_postponed(engine, model)
    for delay in (0, 1000):
        put(engine, model(product=7, deliver_in=delay))
        assert states() == ("leased", "leased")
    replaced = row(engine, message)
    with Session(engine) as session, session.begin():
        session.merge(message)  # With the values from before the replacements.
    assert row(engine, message) == replaced
    with Session(engine) as session, session.begin():
        message.retry(session, 500)
    assert states() == ("scheduled", "scheduled")
    with Session(engine) as session, session.begin():
        model.run_now(session, [message])
    message = get(subscriber)
    with Session(engine) as session, session.begin():
        message.retry(session, 500)
    assert states() == ("retrying", "retrying")


@pytest.mark.parametrize("settle", ["fail", "retry", "release"])
def test_a_replacement_comes_when_the_holder_does_not_ack(
    engine: Engine, unique: type[Any], subscribe: Subscribe, settle: str
) -> None:
    subscriber = subscribe(unique)
    put(engine, unique(product=7, body="old"))
    message = get(subscriber)
    wait_until_postponed(engine, unique)
    put(engine, unique(product=7, body="new"))
    if settle == "release":
        subscriber.close()
        subscriber = subscribe(unique)
        return_lease(unique, engine, message)
    with Session(engine) as session, session.begin():
        if settle == "fail":
            message.fail(session, "broken")
        elif settle == "retry":
            message.retry(session, 1000)
    new = get(subscriber)
    assert (new.body, new.attempts) == ("new", 0)
    ack(engine, new)
    with Session(engine) as session:
        stats = unique.stats(session)
        assert (stats.acked, stats.dead, stats.leased) == (1, 0, 0)


def return_lease(model: type[Any], engine: Engine, message: Any) -> None:
    """Release a message, as a subscriber does with one that no handler got."""
    BaseTransport(model, engine, vitess=False).release([message])


def test_a_replacement_comes_after_a_lost_lease_and_no_late_ack_swallows_it(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    model = make_queue(
        attributes=key_columns(), unique_by=("tenant", "product"), ack_wait=0.5, min_backoff=0.1
    )
    subscriber = subscribe(model)
    put(engine, model(product=7, body="old"))
    old = get(subscriber)
    wait_until_postponed(engine, model)
    put(engine, model(product=7, body="new"))
    new = get(subscriber)
    assert (new.body, new.attempts) == ("new", 0)
    with Session(engine) as session, pytest.raises(AlreadySettled):
        old.ack(session)
    with Session(engine) as session, pytest.raises(LeaseLost):
        old.extend(session, 60)
    ack(engine, new)
    assert not bodies(engine, model)


def test_a_late_ack_of_what_was_replaced_leaves_the_replacement(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, backend: Backend
) -> None:
    if backend.transport in STREAMS:
        pytest.skip("the server may go on sending to a subscriber that has left")
    model = make_queue(
        attributes=key_columns(), unique_by=("tenant", "product"), ack_wait=0.5, min_backoff=0.1
    )
    subscriber = subscribe(model)
    put(engine, model(product=7, body="old"))
    old = get(subscriber)
    subscriber.close()
    eventually(lambda: row(engine, old).time_next < time.time_ns())
    put(engine, model(product=7, body="new", deliver_in=3600))
    due = row(engine, old).time_next
    for settle in ("extend", "retry"):
        with Session(engine) as session, pytest.raises(LeaseLost):
            getattr(old, settle)(session, 60)
    ack(engine, old)  # In time: nobody was given the message since.
    assert bodies(engine, model) == ["new"]
    assert row(engine, old).time_next == due
    with Session(engine) as session, pytest.raises(AlreadySettled):
        old.ack(session)


def test_a_replacement_comes_at_its_own_time(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    for product, settle in enumerate(("ack", "retry", "fail")):
        put(engine, unique(product=product))
        message = get(subscriber)
        wait_until_postponed(engine, unique)
        new = unique(product=product, deliver_in=1000)
        put(engine, new)
        with Session(engine) as session, session.begin():
            message.extend(session, 3)
            assert (
                session.get(unique, (message.time_scheduled, message.id)).time_next > new.time_next
            )
        with Session(engine) as session, session.begin():
            getattr(message, settle)(session)
        assert row(engine, message).time_next == new.time_next


def test_a_message_that_waits_for_its_retry_takes_the_new_time(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    put(engine, unique(product=7, body="old"))
    message = get(subscriber)
    with Session(engine) as session, session.begin():
        message.retry(session, 1000)
    put(engine, unique(product=7, body="new"))
    new = get(subscriber)
    assert (new.body, new.attempts) == ("new", 0)
    ack(engine, new)


def test_a_plain_ack_costs_one_statement(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    with Session(engine) as session, session.begin():
        unique.enqueue_all(session, [unique(product=n) for n in range(9)])
    messages = [get(subscriber) for _ in range(9)]
    wait_until_postponed(engine, unique)
    put(engine, unique(product=messages[0].product, body="new"))
    with Session(engine) as session, session.begin(), counted(engine) as statements:
        messages[1].ack(session)
        unique.ack_all(session, messages[2:])
    assert len(statements) == 2
    with Session(engine) as session, session.begin():
        unique.ack_all(session, messages[:1])
    assert bodies(engine, unique) == ["new"]


def test_a_handler_replaces_its_own_message(
    engine: Engine, unique: type[Any], work: Callable[..., Any]
) -> None:
    seen: list[tuple[str, int]] = []

    def handle(message: Any, session: Session) -> None:
        seen.append((message.body, message.attempts))
        if int(message.body) < 3:
            following = unique(product=7, body=str(int(message.body) + 1))
            unique.enqueue(session, following, if_exists="replace")
        elif int(message.body) == 3:
            message.ack(session)
            assert unique.enqueue(session, unique(product=7, body="4"))

    put(engine, unique(product=7, body="1"))
    work(unique, handle)
    eventually(lambda: not bodies(engine, unique), within=30)
    assert seen == [("1", 0), ("2", 0), ("3", 0), ("4", 0)]


def test_a_worker_handles_what_replaces_a_message_that_fails(
    engine: Engine, unique: type[Any], work: Callable[..., Any]
) -> None:
    seen: list[str] = []

    def handle(message: Any, _session: Session) -> None:
        seen.append(message.body)
        if message.body == "bad":
            put(engine, unique(product=7, body="good"))
            raise Discard("broken")

    put(engine, unique(product=7, body="bad"))
    if engine.dialect.name == "sqlite":
        pytest.skip("the handler writes in a second transaction")
    work(unique, handle, retry=RetryPolicy(max_attempts=1))
    eventually(lambda: not bodies(engine, unique), within=30)
    assert seen == ["bad", "good"]
    with Session(engine) as session:
        assert unique.stats(session).dead == 0


@pytest.mark.parametrize("lazy", ["select", "joined"])
def test_a_payload_that_is_replaced_before_its_handler_begins_has_its_effect_once(
    engine: Engine, backend: Backend, make_queue: MakeQueue, work: Callable[..., Any], lazy: Any
) -> None:
    """Relationships that are loaded with their parent load it once more."""
    if backend.server == "sharded":
        pytest.skip("the table of products has no vindex")

    class Base(DeclarativeBase):
        pass

    class Product(Base):
        __tablename__ = f"product_{random_id()}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    attributes = {
        "product": mapped_column(ForeignKey(Product.id), nullable=False),
        "of": relationship(Product, lazy=lazy),
        "__annotations__": {"body": Mapped[str]},
    }
    model = make_queue(Base, attributes, unique_by="product")
    begun, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    def handle(message: Any, _session: Session) -> None:
        seen.append(message.body)
        if message.product == 1:
            begun.set()
            while not go_on.is_set():
                sleep(0.02)

    with Session(engine) as session, session.begin():
        session.add_all(Product(id=number) for number in (1, 2))
    put(engine, model(product=1, body="first", priority=1))
    put(engine, model(product=2, body="old"))
    work(model, handle, concurrency=1)
    assert begun.wait(30)
    wait_until_postponed(engine, model)
    put(engine, model(product=2, body="new"))
    go_on.set()
    eventually(lambda: not bodies(engine, model), within=30)
    assert (seen.count("first"), seen.count("new")) == (1, 1)


def test_a_renewed_lease_survives_a_replacement(
    engine: Engine, make_queue: MakeQueue, work: Callable[..., Any]
) -> None:
    model = make_queue(
        attributes=key_columns(), unique_by=("tenant", "product"), ack_wait=3, min_backoff=0.3
    )
    seen: list[str] = []
    go_on, begun = threading.Event(), threading.Event()

    def handle(message: Any, _session: Session) -> None:
        seen.append(message.body)
        begun.set()
        if message.body == "old":
            while not go_on.is_set():
                sleep(0.02)

    put(engine, model(product=7, body="old"))
    work(model, handle)
    assert begun.wait(30)
    wait_until_postponed(engine, model)
    put(engine, model(product=7, body="new"))
    time.sleep(8)  # Twice as long as a lease.
    assert seen == ["old"]
    go_on.set()
    eventually(lambda: not bodies(engine, model), within=30)
    assert seen == ["old", "new"]


def test_grouped_acks_leave_replacements(
    engine: Engine, unique: type[Any], subscribe: Subscribe, backend: Backend
) -> None:
    if backend.driver is not None:
        pytest.skip("the adapter has no grouped acks")
    subscriber = subscribe(unique)
    with Session(engine) as session, session.begin():
        unique.enqueue_all(session, [unique(product=n, body=f"old{n}") for n in range(6)])
    messages = [get(subscriber) for _ in range(6)]
    wait_until_postponed(engine, unique)
    for n in (1, 3):
        put(engine, unique(product=n, body=f"new{n}"))
    for future in [subscriber.ack(message) for message in messages]:
        future.result(timeout=30)
    new = [get(subscriber) for _ in range(2)]
    assert sorted(message.body for message in new) == ["new1", "new3"]
    unique_acks = [subscriber.ack(message) for message in new]
    for future in unique_acks:
        future.result(timeout=30)
    assert not bodies(engine, unique)


def test_a_message_must_not_be_deleted_over_its_replacement(
    engine: Engine, unique: type[Any], subscribe: Subscribe
) -> None:
    subscriber = subscribe(unique)
    put(engine, unique(product=7, body="old"))
    message = get(subscriber)
    wait_until_postponed(engine, unique)
    put(engine, unique(product=7, body="new"))
    with Session(engine) as session:
        session.add(message)
        session.delete(message)
        with pytest.raises(AlreadySettled, match="replaced"):
            session.flush()
    assert bodies(engine, unique) == ["new"]


@pytest.mark.parametrize("if_exists", ["skip", "replace"])
def test_two_transactions_at_once_enqueue_one_message(
    engine: Engine, unique: type[Any], if_exists: str
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with ThreadPoolExecutor(1) as pool:
        for commit in (True, False):
            product = int(commit)
            with Session(engine) as first:
                assert unique.enqueue(first, unique(product=product, body="1"), if_exists=if_exists)
                other = unique(product=product, body="2")
                second = pool.submit(put, engine, other, if_exists)
                time.sleep(0.3)
                assert not second.done()
                (first.commit if commit else first.rollback)()
            assert second.result(30) == (if_exists == "replace" or not commit)
    first_wins = "1" if if_exists == "skip" else "2"
    assert bodies(engine, unique) == sorted([first_wins, "2"])


@pytest.mark.parametrize("isolation_level", [None, "READ COMMITTED"])
def test_producers_of_the_same_keys_in_other_orders_do_not_block_each_other(
    engine: Engine, unique: type[Any], isolation_level: str | None, backend: Backend
) -> None:
    if isolation_level is not None and backend.server not in ("mysql", "mariadb"):
        pytest.skip("of MySQL")
    options = {} if isolation_level is None else {"isolation_level": isolation_level}
    producing, products = engine.execution_options(**options), list(range(20))

    def produce_batch(batch: list[Any], mode: str) -> bool:
        """Return whether it is done: else MySQL has ended a deadlock.

        At its default level it locks gaps for ON DUPLICATE KEY.
        """
        try:
            with Session(producing) as session, session.begin():
                unique.enqueue_all(session, batch, if_exists=mode)
        except DBAPIError as error:
            if isolation_level is None and is_deadlock(error):
                return False
            raise
        return True

    def produce(number: int) -> None:
        for turn in range(8):
            order = products if (number + turn) % 2 else products[::-1]
            batch = [unique(product=product, body=str(number)) for product in order]
            mode = ("skip", "replace")[turn % 2]
            eventually(partial(produce_batch, batch, mode), within=60)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(produce, number) for number in range(4)]:
            future.result(120)
    assert len(bodies(engine, unique)) == len(products)


@pytest.mark.parametrize("if_exists", ["raise", "skip", "replace"])
def test_other_conflicts_are_not_hidden(
    engine: Engine, make_queue: MakeQueue, if_exists: str
) -> None:
    columns = {**key_columns(), "code": mapped_column("code", String(20))}
    columns["__table_args__"] = (UniqueConstraint("tenant", "code"),)
    model = make_queue(attributes=columns, unique_by=("tenant", "product"))
    first = model(product=1, code="a", body="first")
    put(engine, first)
    with Session(engine) as session:
        with pytest.raises(IntegrityError):
            model.enqueue(session, model(product=2, code="a"), if_exists=if_exists)
        session.rollback()
        other = model(id=first.id, time_scheduled=first.time_scheduled, product=3, code="c")
        with pytest.raises(IntegrityError):
            model.enqueue(session, other, if_exists=if_exists)
        session.rollback()
        long = model(product=4, code="d" * 50)
        if engine.dialect.name != "sqlite":
            with pytest.raises(Exception, match="too long"):
                model.enqueue(session, long, if_exists=if_exists)
    assert bodies(engine, model) == ["first"]


@pytest.mark.parametrize("is_none", [False, True])
def test_none_and_what_is_not_set_are_stored_as_by_the_session(
    engine: Engine, make_queue: MakeQueue, is_none: bool
) -> None:
    columns = {
        "kind": mapped_column("kind", String(20), default="new"),
        "origin": mapped_column("origin", String(20), server_default="server"),
        "data": mapped_column("data", JSON, nullable=True),
        "note": mapped_column("note", String(20), nullable=True),
        "slug": mapped_column(
            "slug", String(20), default=lambda c: c.get_current_parameters()["body"].lower()
        ),
    }
    model = make_queue(attributes=key_columns() | columns, unique_by=("tenant", "product"))
    given: dict[str, Any] = {"body": "Body"}
    if is_none:
        given |= dict.fromkeys(columns)
    enqueue(engine, model(product=1, **given))
    for product, if_exists in ((2, "raise"), (3, "skip"), (4, "replace")):
        put(engine, model(product=product, **given), if_exists)
    put(engine, model(product=5, kind="old", origin="here", data=[1], note="old", slug="old"))
    put(engine, model(product=5, **given))
    table = model.__table__
    stored = [table.c.data.is_(None), *(table.c[name] for name in columns if name != "data")]
    with engine.connect() as connection:
        rows = connection.execute(select(*stored).order_by(table.c.product)).all()
    assert len(rows) == 5
    assert set(rows) == {(not is_none, "new", "server", None, "body")}


def test_a_connection_and_an_async_session_enqueue(
    engine: Engine, unique: type[Any], backend: Backend
) -> None:
    with engine.begin() as connection:
        assert unique.enqueue(connection, unique(product=7, body="a"), if_exists="skip")
        assert not unique.enqueue(connection, unique(product=7), if_exists="skip")
    driver = "aiosqlite" if backend.server is None else "asyncmy"
    url = async_url(engine.url, driver)

    async def enqueue_one() -> list[bool]:
        async_engine = create_async_engine(url)
        async with AsyncSession(async_engine) as session, session.begin():
            done = [
                await session.run_sync(
                    lambda s, product=product: unique.enqueue(
                        s, unique(product=product, body="b"), if_exists="skip"
                    )
                )
                for product in (7, 8)
            ]
        await async_engine.dispose()
        return done

    assert asyncio.run(enqueue_one()) == [False, True]
    assert bodies(engine, unique) == ["a", "b"]


def test_hooks_skip_and_replace(engine: Engine, make_queue: MakeQueue) -> None:
    base = type("Base", (DeclarativeBase,), {})

    class Product(base):  # type: ignore[valid-type,misc]
        __tablename__ = f"products_{secrets.token_hex(6)}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
        name: Mapped[str] = mapped_column(String(50))

    if engine.url.database == "sharded":
        pytest.skip("the table has no vindex")
    model = make_queue(base=base, attributes=key_columns(), unique_by=("tenant", "product"))

    @emits(Product, "insert", "update", if_exists="skip")
    def reindex(product: Product) -> Any:
        return model(product=product.id, body=f"skip {product.name}")

    with Session(engine) as session, session.begin():
        products = [Product(id=n, name="old") for n in (1, 2)]
        session.add_all(products)
        session.flush()
        products[0].name = "new"
    assert bodies(engine, model) == ["skip old", "skip old"]
    with Session(engine) as session, session.begin():
        on_commit(
            session, lambda: [model(product=1, body=str(n)) for n in range(3)], if_exists="replace"
        )
        on_commit(session, lambda: model(product=2, body="never"), if_exists="skip")
    assert bodies(engine, model) == ["2", "skip old"]
    with Session(engine) as session:
        on_commit(session, lambda: model(product=2, body="never"))
        with pytest.raises(IntegrityError):
            session.commit()
    with Session(engine) as session:
        session.get(Product, 1).name = "rolled back"
        session.flush()
        session.rollback()
    assert bodies(engine, model) == ["2", "skip old"]


def test_what_is_pending_is_written_before(engine: Engine, unique: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.add(unique(product=7, body="added"))
        assert not unique.enqueue(session, unique(product=7), if_exists="skip")
    assert bodies(engine, unique) == ["added"]


def test_a_poll_follows_a_commit_in_the_same_process(
    engine: Engine, unique: type[Any], subscribe: Subscribe, backend: Backend
) -> None:
    if backend.transport in STREAMS:
        pytest.skip("the server pushes")
    subscriber = subscribe(unique, transport=Pull(poll_interval=30))
    assert subscriber.get(timeout=0.5) is None
    put(engine, unique(product=7, body="old"))
    message = get(subscriber, timeout=10)
    put(engine, unique(product=7, body="new"))
    ack(engine, message)
    ack(engine, get(subscriber, timeout=10))


def test_the_helpers_for_tests_know_unique_queues(
    engine: Engine, unique: type[Any], backend: Backend
) -> None:
    if backend.server is not None:
        pytest.skip("a server has a clock of its own")
    sessions = sessionmaker(engine)
    done: list[str] = []

    def handle(message: Any, session: Session) -> None:
        done.append(message.body)
        if message.body == "4":
            later = unique(product=7, body="later", deliver_in=5)
            unique.enqueue(session, later, if_exists="replace")

    with travelling_clock() as clock:
        for n in range(5):
            put(engine, unique(product=7, body=str(n), deliver_in=10))
            clock.move_by(3)
        with sessions() as session:
            assert_enqueued(session, unique, product=7, body="4")
        assert not drain(unique, sessions, handle)
        clock.move_by(8)
        assert len(drain(unique, sessions, handle)) == 1
        clock.move_by(6)
        assert len(drain(unique, sessions, handle)) == 1
    assert done == ["4", "later"]
