"""A handler may settle its message itself, and a worker respects that.

Each test runs with a Worker or an AsyncWorker, as its backend says.
"""

from __future__ import annotations

import copy
import pickle
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, String, select
from sqlalchemy.orm import Session, mapped_column, sessionmaker

from sqla_vitess_messages import LeaseLost, QueueOptions, RetryPolicy
from sqla_vitess_messages.receiving import batcher
from sqla_vitess_messages.rows.states import DEAD
from sqla_vitess_messages.testing import drain
from tests import backends
from tests.async_adapter import sleep
from tests.backends import enqueue, eventually, make_queue_class

MakeQueue = Callable[..., type[Any]]
Work = Callable[..., Any]
Act = Callable[[Any, Session], object]

HOUR = 3600


def in_savepoint(act: Act, *, kept: bool) -> Act:
    def acting(message: Any, session: Session) -> None:
        savepoint = session.begin_nested()
        act(message, session)
        if kept:
            savepoint.commit()
        else:
            savepoint.rollback()

    return acting


def elsewhere(act: Act) -> Act:
    """Act in another session's transaction, which commits."""

    def acting(message: Any, session: Session) -> None:
        with Session(session.get_bind()) as other, other.begin():
            act(message, other)

    return acting


def of_another_instance(act: Act) -> Act:
    """Act on an instance of the same row that was queried."""

    def acting(message: Any, session: Session) -> None:
        session.expunge(message)
        model = type(message)
        act(session.scalars(select(model).where(model.id == message.id)).one(), session)

    return acting


def of_a_copy(act: Act, make: Callable[[Any], Any]) -> Act:
    return lambda message, session: act(make(message), session)


def fail(message: Any, session: Session) -> None:
    message.fail(session, "by itself")


def retry(message: Any, session: Session) -> None:
    message.retry(session, HOUR)


def cancel_by_condition(message: Any, session: Session) -> None:
    model = type(message)
    assert model.cancel(session, model.id == message.id) == 1


def ack(message: Any, session: Session) -> None:
    message.ack(session)


def extend(message: Any, session: Session) -> None:
    message.extend(session, HOUR)


def unpickled(message: Any) -> Any:
    return pickle.loads(pickle.dumps(message))  # noqa: S301


ACKED: dict[str, Act] = {
    "ack": ack,
    "extend": extend,
    "extend, ack": lambda m, s: (extend(m, s), ack(m, s)),
    "extend elsewhere": elsewhere(extend),
    "ack in a savepoint": in_savepoint(ack, kept=True),
    "ack in a savepoint that is rolled back": in_savepoint(ack, kept=False),
    "fail in a savepoint that is rolled back": in_savepoint(fail, kept=False),
    "retry in a savepoint that is rolled back": in_savepoint(retry, kept=False),
    "cancel in a savepoint that is rolled back": in_savepoint(cancel_by_condition, kept=False),
    "ack elsewhere": elsewhere(ack),
    "ack another instance": of_another_instance(ack),
    "ack a copy": of_a_copy(ack, copy.deepcopy),
    "ack what was pickled": of_a_copy(ack, unpickled),
    "ack all": lambda message, session: type(message).ack_all(session, [message]),
}
FAILED: dict[str, Act] = {
    "fail": fail,
    "extend, fail": lambda m, s: (extend(m, s), fail(m, s)),
    "fail in a savepoint": in_savepoint(fail, kept=True),
    "fail elsewhere": elsewhere(fail),
    "fail another instance": of_another_instance(fail),
    "fail a copy": of_a_copy(fail, copy.deepcopy),
    "fail what was pickled": of_a_copy(fail, unpickled),
    "fail all": lambda message, s: type(message).fail_all(s, [message], "by itself"),
}
RETRIED: dict[str, Act] = {
    "retry": retry,
    "retry in a savepoint": in_savepoint(retry, kept=True),
    "retry elsewhere": elsewhere(retry),
    "retry another instance": of_another_instance(retry),
    "retry a copy": of_a_copy(retry, copy.deepcopy),
    "retry what was pickled": of_a_copy(retry, unpickled),
    "retry all": lambda message, session: type(message).retry_all(session, [message], HOUR),
}
CANCELLED: dict[str, Act] = {
    "cancel": lambda message, session: type(message).cancel(session, [message]),
    "cancel its id": lambda message, session: type(message).cancel(session, [message.id]),
    "cancel by a condition": cancel_by_condition,
    "cancel in a savepoint": in_savepoint(cancel_by_condition, kept=True),
    "cancel over its connection": lambda message, session: type(message).cancel(
        session.connection(), iter([message])
    ),
}
ACTS = ACKED | FAILED | RETRIED | CANCELLED | {"nothing": lambda _message, _session: None}


@pytest.fixture
def queue(make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    reasons = mapped_column(String(60))
    model = make_queue(None, {"fail_reason": reasons}, ack_wait=20)
    monkeypatch.setattr(backends, "Message", model, raising=False)  # Where pickle looks for it.
    return model


def state_of(found: Any) -> str:
    """Return what a row says of its message."""
    if found.time_acked is not None:
        return "acked" if found.time_next is None else "broken"
    if found.time_next == DEAD:
        return f"dead: {found.fail_reason}"
    in_seconds = (found.time_next - time.time_ns()) / 10**9
    return "retried" if 0.8 * HOUR < in_seconds < 1.1 * HOUR else "unsettled"


EXPECTED = (
    dict.fromkeys(ACKED, "acked")
    | dict.fromkeys(FAILED, "dead: by itself")
    | dict.fromkeys(RETRIED, "retried")
    | {"nothing": "acked"}
)


def states(engine: Engine, queue: type[Any]) -> dict[str, str]:
    with engine.connect() as connection:
        found = connection.execute(select(queue.__table__)).all()
    return {row.body.removesuffix("!"): state_of(row) for row in found}


def bodies(engine: Engine, queue: type[Any]) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(queue.__table__.c.body)))


def expect(engine: Engine, queue: type[Any], expected: dict[str, str]) -> None:
    try:
        eventually(lambda: states(engine, queue) == expected, within=30)
    except AssertionError:
        found = states(engine, queue)
        wrong = {name: state for name, state in found.items() if state != expected[name]}
        raise AssertionError(f"not as expected: {wrong}") from None


def act(message: Any, session: Session) -> None:
    body = message.body
    if "another instance" not in body:
        message.body = f"{body}!"  # The handler's effect.
    session.flush()
    ACTS[body](message, session)


@pytest.mark.parametrize("batch_size", [None, 100])
def test_what_a_handler_settles_itself_is_respected(
    engine: Engine, queue: type[Any], work: Work, batch_size: int | None
) -> None:
    handled: Counter[str] = Counter()

    def handle(messages: Any, session: Session) -> None:
        for message in [messages] if batch_size is None else messages:
            handled[message.body] += 1
            if "elsewhere" in message.body:
                ACTS[message.body](message, session)  # SQLite allows one writer at a time.
        for message in [messages] if batch_size is None else messages:
            if "elsewhere" not in message.body:
                act(message, session)

    enqueue(engine, *(queue(body=name) for name in ACTS))
    # With one slot, none of them may keep it.
    slots = {"max_concurrency": batch_size or 1}
    work(queue, handle, concurrency=1, batch_size=batch_size, subscriber_options=slots)
    expect(engine, queue, EXPECTED)
    assert handled == Counter(list(ACTS))  # Once each: no batch fell apart.
    changed = {name for name in ACTS if "elsewhere" not in name and "another" not in name}
    assert sorted(bodies(engine, queue)) == sorted(
        f"{name}!" if name in changed else name for name in ACTS.keys() - CANCELLED.keys()
    )


def test_a_handler_that_settles_its_message_and_fails_has_settled_nothing(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    names = [name for name in ACTS if "elsewhere" not in name]

    def handle(message: Any, session: Session) -> None:
        act(message, session)
        raise LookupError("no")

    enqueue(engine, *(queue(body=name) for name in names))
    work(queue, handle)
    expect(engine, queue, dict.fromkeys(names, "dead: LookupError: no (attempt 2 of 2)"))


def test_a_handler_may_work_on_after_it_has_settled_its_message_elsewhere(
    engine: Engine, make_queue: MakeQueue, work: Work
) -> None:
    queue = make_queue(ack_wait=0.6, min_backoff=0.2)
    handled: list[int] = []

    def handle(message: Any, session: Session) -> None:
        handled.append(message.epoch)
        if message.body == "settled":
            elsewhere(ack)(message, session)
            sleep(1.5)  # Longer than the lease, whose renewal finds that it is over.
            session.add(queue(body="an effect", deliver_in=HOUR))

    enqueue(engine, queue(body="settled"))
    work(queue, handle)
    expect(engine, queue, {"settled": "acked", "an effect": "retried"})
    assert len(handled) == 1


def test_a_message_that_others_have_settled_keeps_no_slot(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    def handle(message: Any, session: Session) -> None:
        if message.body == "first":
            with Session(session.get_bind()) as other, other.begin():
                other.scalars(select(queue).where(queue.id == message.id)).one().ack(other)

    enqueue(engine, queue(body="first"), queue(body="second", priority=101))
    work(queue, handle, concurrency=1, subscriber_options={"max_concurrency": 1})
    expect(engine, queue, {"first": "acked", "second": "acked"})


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_a_grouped_settlement_that_a_handler_does_not_wait_for_is_respected(
    engine: Engine, queue: type[Any], work: Work, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    monkeypatch.setattr(batcher, "LINGER", 0.3)  # The handler ends before the group commits.

    def handle(message: Any, session: Session) -> None:
        subscriber = worker._worker._subscriber
        message.body += "!"
        session.flush()
        {
            "ack": lambda: subscriber.ack(message),
            "fail": lambda: subscriber.fail(message, "by itself"),
            "retry": lambda: subscriber.retry(message, HOUR),
        }[message.body.removesuffix("!")]()
        if raises:
            raise LookupError("no")

    worker = work(queue, handle)
    enqueue(engine, *(queue(body=name) for name in ("ack", "fail", "retry")))
    expect(engine, queue, {"ack": "acked", "fail": "dead: by itself", "retry": "retried"})
    assert all(body.endswith("!") != raises for body in bodies(engine, queue))


def test_a_lease_of_another_message_that_is_lost_is_a_failure_like_any_other(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    def handle(message: Any, session: Session) -> None:
        if message.body == "good":
            return
        raise LeaseLost("the lease of another message", message_ids=[1])

    enqueue(engine, queue(body="bad"), queue(body="good"))
    work(queue, handle)
    expect(
        engine,
        queue,
        {"good": "acked", "bad": "dead: LeaseLost: the lease of another message (attempt 2 of 2)"},
    )


def test_drain_respects_what_a_handler_settles_itself(
    monkeypatch: pytest.MonkeyPatch, message_sessions: Callable[..., sessionmaker[Session]]
) -> None:
    reasons = mapped_column(String(60))
    queue = make_queue_class(QueueOptions(), attributes={"fail_reason": reasons})
    monkeypatch.setattr(backends, "Message", queue, raising=False)
    sessions = message_sessions(queue.metadata)
    names = [name for name in ACTS if "elsewhere" not in name]  # It has one connection.
    with sessions.begin() as session:
        session.add_all([queue(body=name) for name in names])
    handled = drain(queue, sessions, act, retry=RetryPolicy(max_attempts=1))
    assert sorted(message.body for message in handled) == sorted(names)
    assert states(sessions.kw["bind"], queue) == {
        name: EXPECTED[name] for name in names if name not in CANCELLED
    }
