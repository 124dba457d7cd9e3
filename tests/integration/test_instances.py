"""What a handler, or a loop of one's own, does with a message's instance has no bearing on its row.

Each worker's test runs with a Worker or an AsyncWorker, as its backend says.
"""

from __future__ import annotations

import copy
import pickle
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import JSON, BigInteger, Engine, ForeignKey, String, event, inspect, select
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    make_transient,
    mapped_column,
    reconstructor,
    relationship,
)
from sqlalchemy.orm.attributes import flag_modified

from sqla_vitess_messages import AlreadySettled, LeaseLost, Retry, random_id
from sqla_vitess_messages.rows.lease import lease_of
from sqla_vitess_messages.rows.states import DEAD
from tests import backends
from tests.async_adapter import sleep
from tests.backends import BACKENDS, Backend, enqueue, eventually, row
from tests.deadlock_partner import FIRST, SECOND, DeadlockPartner

MakeQueue = Callable[..., type[Any]]
Work = Callable[..., Any]
Act = Callable[[Any, Session], object]

UNSHARDED = [backend for backend in BACKENDS if backend.server != "sharded"]
"""Where a queue can refer to other tables without a vschema for them."""


def overwrite(message: Any, _session: Session) -> None:
    """Change every column of the queue itself."""
    message.epoch = 50
    message.time_next = 0
    message.time_acked = 1
    message.time_created = message.time_created + 1
    message.time_scheduled = message.time_scheduled + 1
    message.id = message.id - 1


def overwrite_unloaded(message: Any, session: Session) -> None:
    session.expire(message)
    message.time_next = 0
    message.epoch = 50
    session.flush()


def delete_attributes(message: Any, session: Session) -> None:
    del message.time_next
    del message.epoch
    session.flush()


def change_in_place(message: Any, session: Session) -> None:
    message.data["list"].append(99)
    flag_modified(message, "data")
    session.flush()


def merge_elsewhere(message: Any, session: Session) -> None:
    with Session(session.get_bind()) as other, other.begin():
        merged = other.merge(message)
        assert merged.epoch == message.epoch  # It is what is not to be written.


def pickle_it(message: Any, _session: Session) -> None:
    assert pickle.loads(pickle.dumps(message)).body == message.body  # noqa: S301


ACTS: dict[str, Act] = {
    "nothing": lambda _message, _session: None,
    "add": lambda message, session: session.add(message),
    "merge": lambda message, session: session.merge(message),
    "merge elsewhere": merge_elsewhere,
    "refresh": lambda message, session: session.refresh(message),
    "expire": lambda message, session: session.expire(message),
    "expunge": lambda message, session: session.expunge(message),
    "expunge, merge": lambda m, session: (session.expunge(m), session.merge(m), session.flush()),
    "make transient": lambda m, session: (session.expunge(m), make_transient(m)),
    "overwrite": overwrite,
    "overwrite, flush": lambda m, session: (overwrite(m, session), session.flush()),
    "overwrite unloaded": overwrite_unloaded,
    "delete attributes": delete_attributes,
    "copy": lambda message, _session: copy.copy(message).body,
    "deepcopy": lambda message, _session: copy.deepcopy(message).body,
    "pickle": pickle_it,
    "change in place": change_in_place,
}


@pytest.fixture
def queue(make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    attributes = {
        "data": mapped_column(JSON, default=lambda: {"list": [1]}),
        "fail_reason": mapped_column(String(60)),
    }
    model = make_queue(None, attributes, ack_wait=20)
    monkeypatch.setattr(backends, "Message", model, raising=False)  # Where pickle looks for it.
    return model


def stats(engine: Engine, queue: type[Any]) -> Any:
    with Session(engine) as session:
        return queue.stats(session)


def settled(engine: Engine, queue: type[Any], acked: int, dead: int = 0) -> None:
    def counts() -> tuple[int, int]:
        found = stats(engine, queue)
        return found.acked, found.dead

    try:
        eventually(lambda: counts() == (acked, dead), within=30)
    except AssertionError:
        raise AssertionError(f"(acked, dead) are {counts()}, not {(acked, dead)}") from None


def rows(engine: Engine, queue: type[Any]) -> dict[str, Any]:
    """Return the rows by their body."""
    with engine.connect() as connection:
        return {found.body: found for found in connection.execute(select(queue.__table__))}


def test_whatever_a_handler_does_with_its_message_the_message_is_acked(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    handled: list[str] = []

    def handle(message: Any, session: Session) -> None:
        handled.append(message.body)
        ACTS[message.body](message, session)

    enqueue(engine, *(queue(body=name) for name in ACTS))
    before = rows(engine, queue)
    work(queue, handle)
    settled(engine, queue, len(ACTS))
    assert sorted(handled) == sorted(ACTS)
    for name, found in rows(engine, queue).items():
        same = before[name]
        assert (found.id, found.epoch, found.time_next) == (same.id, 1, None), name
        assert found.time_acked > found.time_created == same.time_created, name
        assert found.time_scheduled == same.time_scheduled, name


def test_attempts_are_those_of_the_delivery_whatever_the_session_loads(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    loads: dict[str, Act] = {
        "refresh": lambda message, session: session.refresh(message),
        "expire": lambda message, session: session.expire(message),
        "select": lambda _message, session: session.scalars(
            select(queue).execution_options(populate_existing=True)
        ).all(),
    }
    attempts: list[int] = []

    def handle(message: Any, session: Session) -> None:
        attempts.append(message.attempts)
        loads[message.body](message, session)
        attempts.append(message.attempts)
        if message.attempts == 0:
            raise Retry(0)

    enqueue(engine, *(queue(body=name) for name in loads))
    work(queue, handle)
    settled(engine, queue, len(loads))
    assert Counter(attempts) == {0: 2 * len(loads), 1: 2 * len(loads)}


def test_an_instance_holds_its_columns_and_nothing_of_the_library(
    engine: Engine, queue: type[Any], subscribe: Callable[..., Any]
) -> None:
    enqueue(engine, queue(body="first"))
    received = subscribe(queue).get(20)
    enqueued = queue(body="second")
    with Session(engine) as session, session.begin():
        queue.enqueue(session, enqueued)
    columns = inspect(queue).column_attrs.keys()
    for message in (received, enqueued):
        values = {name: value for name, value in vars(message).items() if name in columns}
        assert vars(message).keys() - values.keys() == {"_sa_instance_state"}
        assert lease_of(queue(**values)) is None


def test_whatever_a_handler_does_before_it_fails_each_attempt_begins_with_a_fresh_instance(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    seen: dict[str, list[tuple[int, list[int]]]] = defaultdict(list)

    def handle(message: Any, session: Session) -> None:
        body = message.body
        seen[body].append((message.epoch, list(message.data["list"])))
        ACTS[body](message, session)
        raise LookupError("no")

    enqueue(engine, *(queue(body=name) for name in ACTS))
    work(queue, handle)
    settled(engine, queue, 0, dead=len(ACTS))
    assert seen == {name: [(0, [1]), (1, [1])] for name in ACTS}
    for name, found in rows(engine, queue).items():
        assert found.fail_reason == "LookupError: no (attempt 2 of 2)", name
        assert (found.epoch, found.time_next, found.data) == (2, DEAD, {"list": [1]}), name


def test_when_a_batch_falls_apart_each_message_begins_with_a_fresh_instance(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    seen: dict[str, list[tuple[int, list[int]]]] = defaultdict(list)
    sizes: list[int] = []

    def handle(messages: list[Any], session: Session) -> None:
        sizes.append(len(messages))
        for message in messages:
            body = message.body
            seen[body].append((message.epoch, list(message.data["list"])))
            ACTS[body](message, session)
        if len(messages) > 1:
            raise LookupError("apart")

    enqueue(engine, *(queue(body=name) for name in ACTS))
    work(queue, handle, concurrency=1, batch_size=100)
    settled(engine, queue, len(ACTS))
    assert sizes[0] > 1
    assert {(0, (1,))} == {(epoch, tuple(found)) for some in seen.values() for epoch, found in some}


@pytest.mark.parametrize(
    "backend",
    [b for b in UNSHARDED if b.server is not None],  # SQLite allows one writer at a time.
    indirect=True,
    ids=lambda backend: backend.name,
)
def test_after_a_deadlock_a_handler_begins_with_a_fresh_instance(
    engine: Engine, make_queue: MakeQueue, work: Work
) -> None:
    class Base(DeclarativeBase):
        pass

    queue = make_queue(Base, {"data": mapped_column(JSON, default=lambda: {"list": [1]})})

    class Effect(Base):
        __tablename__ = f"effect_of_{queue.__tablename__}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
        body: Mapped[str] = mapped_column(String(100))

    Base.metadata.create_all(engine)
    seen: list[tuple[int, list[int]]] = []
    with DeadlockPartner(engine, Effect) as partner:

        def lock_both(message: Any, session: Session) -> None:
            seen.append((message.epoch, list(message.data["list"])))
            message.data["list"].append(2)
            session.execute(partner.lock(FIRST))
            partner.request_first()
            session.execute(partner.lock(SECOND))

        enqueue(engine, queue(body="again"))
        work(queue, lock_both, concurrency=1)
        settled(engine, queue, 1)
    assert seen == [(0, [1]), (0, [1])]


@pytest.mark.parametrize("batch_size", [None, 10])
def test_changes_of_the_payload_and_the_priority_are_saved_with_the_ack(
    engine: Engine, queue: type[Any], work: Work, batch_size: int | None
) -> None:
    def handle(message: Any, session: Session) -> None:
        message.data = {"list": [], "by": message.body}
        message.priority = 7
        if message.body == "flushed":
            session.flush()
        if message.body == "failed by itself":
            message.fail(session)

    def handle_many(messages: list[Any], session: Session) -> None:
        for message in messages:
            handle(message, session)

    bodies = ["changed", "flushed", "failed by itself"]
    enqueue(engine, *(queue(body=body) for body in bodies))
    work(queue, handle if batch_size is None else handle_many, batch_size=batch_size)
    settled(engine, queue, 2, dead=1)
    for body, found in rows(engine, queue).items():
        assert (found.data["by"], found.priority) == (body, 7)


def test_a_mutable_payload_that_is_changed_in_place_is_saved_with_the_ack(
    engine: Engine, make_queue: MakeQueue, work: Work
) -> None:
    queue = make_queue(None, {"data": mapped_column(MutableDict.as_mutable(JSON))})

    def handle(message: Any, _session: Session) -> None:
        message.data["attempts"] = message.data.get("attempts", 0) + 1
        if message.epoch == 0:
            raise LookupError

    enqueue(engine, queue(data={"list": []}))
    work(queue, handle)
    settled(engine, queue, 1)
    [found] = rows(engine, queue).values()
    assert found.data == {"list": [], "attempts": 1}


def test_deleting_its_message_settles_it(engine: Engine, queue: type[Any], work: Work) -> None:
    handled: list[str] = []

    def handle(message: Any, session: Session) -> None:
        handled.append(message.body)
        if message.body == "fails first" and message.epoch == 0:
            session.delete(message)
            session.flush()
            raise LookupError
        if message.body == "restored":
            savepoint = session.begin_nested()
            session.delete(message)
            session.flush()
            savepoint.rollback()
        elif message.body != "kept":
            session.delete(message)
        if message.body == "flushed":
            session.flush()

    bodies = ["deleted", "flushed", "fails first", "restored", "kept"]
    enqueue(engine, *(queue(body=body) for body in bodies))
    # Each needs the slot of the one before it.
    work(queue, handle, concurrency=1, subscriber_options={"max_concurrency": 1})
    settled(engine, queue, 2)
    eventually(lambda: set(rows(engine, queue)) == {"restored", "kept"})
    assert sorted(handled) == sorted([*bodies, "fails first"])


def test_a_handler_that_deletes_a_message_that_others_acked_has_no_effect(
    engine: Engine, queue: type[Any], subscribe: Callable[..., Any]
) -> None:
    for flush in (False, True):
        enqueue(engine, queue(body=f"late {flush}"), queue(body="untouched"))
        subscriber = subscribe(queue)
        late, other = sorted((subscriber.get(20), subscriber.get(20)), key=lambda m: m.body)
        with Session(engine) as session, session.begin():
            session.scalars(select(queue).where(queue.id == late.id)).one().ack(session)

        def effect(late: Any = late, other: Any = other, flush: bool = flush) -> None:
            with Session(engine) as session, session.begin():
                session.add(other)
                other.data = {"list": "an effect"}
                session.delete(late)
                if flush:
                    session.flush()

        with pytest.raises(AlreadySettled):
            effect()
        subscriber.close()
        assert {found.data["list"][0] for found in rows(engine, queue).values()} == {1}


def test_deleting_a_message_in_a_loop_of_ones_own_frees_its_slot(
    engine: Engine, queue: type[Any], subscribe: Callable[..., Any]
) -> None:
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue, max_concurrency=1)
    for _ in range(2):
        message = subscriber.get(20)
        assert message is not None  # Though each lease would last for 20 s.
        with Session(engine) as session, session.begin():
            session.delete(message)
    assert rows(engine, queue) == {}


@pytest.mark.parametrize("how", ["rolled back", "committed", "merged", "deep-copied"])
def test_a_message_that_was_in_sessions_is_settled_like_any_other(
    engine: Engine, queue: type[Any], subscribe: Callable[..., Any], how: str
) -> None:
    enqueue(engine, *(queue(body=f"{number}") for number in range(7)))
    subscriber = subscribe(queue)
    messages: dict[int, Any] = {}
    while len(messages) < 7:
        for message in subscriber.get_many(7, 20):
            messages[message.id] = message
    used = list(messages.values())
    ids = list(messages)
    with Session(engine) as session:
        if how == "merged":
            for message in used:
                session.merge(message)
            session.commit()
        elif how == "deep-copied":
            used = [copy.deepcopy(message) for message in used]
        else:
            session.add_all(used)
            if how == "committed":
                session.commit()
            if how == "rolled back":
                session.rollback()
    acked, failed, retried, extended, *grouped = used
    assert subscriber.extend([extended, acked], 30) == []
    with Session(engine) as session, session.begin():
        acked.ack(session)
        failed.fail(session, "by hand")
        retried.retry(session, 3600)
        extended.extend(session, 3600)
    futures = [
        subscriber.ack(grouped[0]),
        subscriber.fail(grouped[1], "in a group"),
        subscriber.retry(grouped[2], 3600),
    ]
    assert [future.exception(20) for future in futures] == [None] * 3
    with pytest.raises(LeaseLost), Session(engine) as session, session.begin():
        failed.retry(session)
    with engine.connect() as connection:
        found = {r.id: r for r in connection.execute(select(queue.__table__))}
    found_rows = [found[id_] for id_ in ids]
    assert [r.time_acked is not None for r in found_rows] == [1, 0, 0, 0, 1, 0, 0]
    assert [r.fail_reason for r in found_rows] == [
        None, "by hand", None, None, None, "in a group", None,
    ]  # fmt: skip
    hour = time.time_ns() + 3000 * 10**9
    later = [r.time_next is not None and hour < r.time_next < DEAD for r in found_rows]
    assert later == [0, 0, 1, 1, 0, 0, 1]
    assert {r.epoch for r in found_rows} == {1}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("outcome", ["ack", "fail", "retry"])
def test_writes_to_a_queues_own_columns_never_reach_the_row(
    engine: Engine, queue: type[Any], subscribe: Callable[..., Any], when: str, outcome: str
) -> None:
    arguments = {"retry": [3600]}.get(outcome, [])
    enqueue(engine, queue(body="one"))
    subscriber = subscribe(queue)
    message = subscriber.get(20)
    delivered = copy.deepcopy(message)
    with Session(engine) as session, session.begin():
        if when == "before":
            session.add(message)
            overwrite(message, session)
            message.body = "changed"
            message.priority = 3
            session.flush()
        getattr(message, outcome)(session, *arguments)
        if when == "after":
            session.add(message)
            overwrite(message, session)
            message.body = "changed"
            message.priority = 3
    first = row(engine, delivered)
    assert (first.body, first.priority, first.epoch) == ("changed", 3, 1)
    assert (first.time_scheduled, first.time_created) == (
        delivered.time_scheduled,
        delivered.time_created,
    )
    assert (first.time_acked is not None) == (outcome == "ack")
    assert first.time_next != 0
    with Session(engine) as session, session.begin():
        merged = session.merge(delivered)  # As it was received.
        assert (merged.epoch, merged.time_acked) == (0, None)
    merged_back = {"body": "one", "priority": delivered.priority}
    assert row(engine, delivered)._asdict() == first._asdict() | merged_back


def test_a_heartbeat_never_uses_the_session_of_a_handler(
    engine: Engine, make_queue: MakeQueue, work: Work
) -> None:
    queue = make_queue(ack_wait=4)
    statements: list[str] = []
    sent: list[list[str]] = []

    def handle(message: Any, session: Session) -> None:
        session.connection()
        session.expire_all()  # Whoever reads an attribute now sends a statement.
        before = len(statements)
        sleep(2.5)
        sent.append(statements[before:])
        assert message.body == "one"

    worker = work(queue, handle, concurrency=1)

    @event.listens_for(worker.engine, "before_cursor_execute")
    def record(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    enqueue(engine, queue(body="one"))
    eventually(lambda: sent)
    settled(engine, queue, 1)
    assert sent == [[]]
    assert rows(engine, queue)["one"].epoch == 1


@pytest.mark.parametrize("lazy", ["select", "selectin", "joined"])
@pytest.mark.parametrize("backend", UNSHARDED, indirect=True, ids=lambda backend: backend.name)
def test_relationships_load_in_a_handler(
    engine: Engine, backend: Backend, make_queue: MakeQueue, work: Work, lazy: Any
) -> None:
    class Base(DeclarativeBase):
        pass

    table = f"user_{random_id()}"

    class User(Base):
        __tablename__ = table
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str] = mapped_column(String(20))

    def again(self: Any) -> None:
        self.made = True

    attributes = {
        "user_id": mapped_column(ForeignKey(User.id)),
        "user": relationship(User, lazy=lazy),
        "__annotations__": {"body": Mapped[str]},
        "again": reconstructor(again),
    }
    queue = make_queue(Base, attributes)
    handled: list[tuple[int, str]] = []

    def handle(messages: list[Any], session: Session) -> None:
        for message in messages:
            assert ("user" in message.__dict__) == (lazy != "select")
            assert message.made
            message.user.name += "!"
            handled.append((message.epoch, message.user.name))
            assert session.get(User, 1) is message.user
        if len(messages) > 1:
            raise LookupError("one by one")

    with Session(engine) as session, session.begin():
        session.add(User(id=1, name="ada"))
        session.flush()
        session.add_all([queue(user_id=1), queue(user_id=1)])
    work(queue, handle, concurrency=1, batch_size=5)
    settled(engine, queue, 2)
    assert handled[-2:] == [(0, "ada!"), (0, "ada!!")]
    with Session(engine) as session:
        assert session.scalar(select(User.name)) == "ada!!"
