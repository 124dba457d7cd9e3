"""The state and the times of a message, of an instance and in SQL, and its last failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, inspect, select, text, update
from sqlalchemy.orm import DeclarativeBase, Session, aliased

from sqla_vitess_messages import InvalidArgument, QueueOptions
from sqla_vitess_messages.failures import MessageFailuresMixin
from sqla_vitess_messages.vitess.server import is_sqlite
from tests.backends import (
    BACKENDS,
    STREAMS,
    Backend,
    ack,
    eventually,
    make_queue_class,
    pulling_in_threads,
    row,
)

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]


def failures_base() -> Any:
    return type("Base", (MessageFailuresMixin, DeclarativeBase), {})


def enqueue(engine: Engine, *messages: Any) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add_all(messages)


def settle(engine: Engine, message: Any, action: str, *arguments: Any) -> None:
    with Session(engine) as session, session.begin():
        getattr(message, action)(session, *arguments)


def states_of(engine: Engine, queue: type[Any], *, in_sql: bool) -> dict[str, str]:
    """Return the state of each message by its body."""
    with Session(engine) as session:
        if in_sql:
            return dict(session.execute(select(queue.body, queue.state)).all())
        return {message.body: message.state for message in session.scalars(select(queue))}


def found_by_state(engine: Engine, queue: type[Any], state: str) -> list[str]:
    with Session(engine) as session:
        found = select(queue.body).where(queue.state == state).order_by(queue.body)
        others = select(queue.body).where(queue.state != state)
        bodies = list(session.scalars(found))
        assert set(session.scalars(others)).isdisjoint(bodies)
        assert len(session.scalars(others).all()) + len(bodies) == 6
        assert session.scalars(found.where(queue.state.in_([state, "acked"]))).all() == bodies
    return bodies


@pytest.mark.parametrize("keeps_failures", [True, False])
@pytest.mark.parametrize("layout", ["portable", "minimal"])
def test_each_state_is_told_by_instances_and_by_sql(
    engine: Engine,
    make_queue: MakeQueue,
    subscribe: Subscribe,
    backend: Backend,
    layout: str,
    keeps_failures: bool,
) -> None:
    queue = make_queue(base=failures_base() if keeps_failures else None, layout=layout)
    subscriber = subscribe(queue, max_concurrency=4)
    enqueue(engine, *(queue(body=body) for body in ("leased", "acked", "dead", "retrying")))
    received = {(message := subscriber.get(20)).body: message for _ in range(4)}
    ack(engine, received["acked"])
    settle(engine, received["dead"], "fail", "no such address")
    settle(engine, received["retrying"], "retry", 3600, "try later")
    eventually(lambda: row(engine, received["leased"]).time_next > time.time_ns())
    subscriber.close()
    ready = queue(body="ready")
    enqueue(engine, queue(body="scheduled", deliver_in=3600), ready)

    def is_left_alone() -> bool:
        """Return whether no stream takes it that a busy server has not closed yet."""
        time.sleep(0.5)
        if row(engine, ready).epoch == 0:
            return True
        with engine.begin() as connection:
            undoing = update(queue).where(queue.body == "ready")
            connection.execute(undoing.values(epoch=0, time_next=1))
        return False

    if backend.transport in STREAMS:
        eventually(is_left_alone)
    expected = {state: state for state in [*received, "scheduled", "ready"]}
    if not keeps_failures:
        expected["retrying"] = "leased"
    assert states_of(engine, queue, in_sql=True) == expected
    assert states_of(engine, queue, in_sql=False) == expected
    for state in set(expected.values()):
        bodies = sorted(body for body, found in expected.items() if found == state)
        assert found_by_state(engine, queue, state) == bodies
    assert {message.body: message.state for message in received.values()} == {
        body: expected[body] for body in received
    }


def test_a_message_that_is_delivered_again_after_a_failure_is_leased(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(base=failures_base())
    enqueue(engine, queue(body="a"))
    subscriber = subscribe(queue)
    message = subscriber.get(20)
    settle(engine, message, "retry", 0, "first")
    again = subscriber.get(20)
    eventually(lambda: states_of(engine, queue, in_sql=True) == {"a": "leased"})
    assert (again.state, again.fail_reason) == ("leased", "first")
    settle(engine, again, "retry", 3600)
    assert states_of(engine, queue, in_sql=True) == {"a": "retrying"}
    with Session(engine) as session:
        found = session.scalars(select(queue)).one()
        assert (found.state, found.fail_reason) == ("retrying", None)
        assert abs(found.failed_at - datetime.now(UTC)) < timedelta(minutes=1)
        recent = datetime.now(UTC) - timedelta(minutes=1)
        assert session.scalars(select(queue).where(queue.failed_at > recent)).all() == [found]


def test_a_worker_keeps_the_error_of_each_attempt(
    engine: Engine, make_queue: MakeQueue, work: Callable[..., Any]
) -> None:
    queue = make_queue(base=failures_base())
    seen: list[str | None] = []

    def handle(message: Any, _session: Session) -> None:
        seen.append(message.fail_reason)
        raise ValueError(f"attempt {message.attempts}")

    message = queue()
    enqueue(engine, message)
    work(queue, handle)
    eventually(lambda: row(engine, message).fail_reason == "ValueError: attempt 1 (attempt 2 of 2)")
    assert seen == [None, "ValueError: attempt 0"]
    with Session(engine) as session:
        assert [found.state for found in queue.dead(session)] == ["dead"]


def test_a_grouped_retry_keeps_its_reason(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(base=failures_base())
    enqueue(engine, queue(), queue())
    subscriber = subscribe(queue)
    first, second = subscriber.get(20), subscriber.get(20)
    for message, reason in ((first, "x" * 100_000), (second, "\udcff is no character")):
        subscriber.retry(message, 3600, reason).result(20)
    assert row(engine, first).fail_reason.startswith("x" * 65_535)
    assert row(engine, second).fail_reason == "\\udcff is no character"


def test_a_message_that_cannot_be_loaded_keeps_the_reason(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(base=failures_base())
    enqueue(engine, queue(body="bad"))

    def refuse(target: Any, _context: object) -> None:
        if target.body == "bad":
            raise ValueError("refused")

    event.listen(queue, "load", refuse)
    subscribe(queue)
    table = queue.__table__

    def reason() -> Any:
        with engine.connect() as connection:
            return connection.scalar(select(table.c.fail_reason))

    eventually(reason)
    assert reason() == "can't be loaded: ValueError: refused"


@pulling_in_threads
def test_times_are_datetimes_in_sql_and_of_instances(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    at = datetime(2100, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    before = datetime.now(UTC)
    enqueue(engine, queue(body="later", deliver_at=at), queue(body="acked"))
    subscriber = subscribe(queue)
    ack(engine, subscriber.get(20))
    subscriber.close()
    enqueue(engine, dead := queue(body="dead"))
    settle(engine, dead, "fail")
    with Session(engine) as session:
        later = session.scalars(select(queue).where(queue.deliver_at == at)).one()
        assert (later.body, later.deliver_at, later.acked_at) == ("later", at, None)
        acked = session.scalars(select(queue).where(queue.acked_at >= before)).one()
        assert before - timedelta(seconds=5) < acked.acked_at < datetime.now(UTC)
        assert acked.deliver_at is None
        assert session.scalar(select(func.max(queue.created_at))) >= before
        ordered = select(queue.body).order_by(queue.created_at.desc(), queue.deliver_at)
        assert len(session.scalars(ordered).all()) == 3
        assert session.execute(select(queue.deliver_at, queue.created_at)).all()
        other = aliased(queue)
        assert session.scalar(select(other.body).where(other.state == "scheduled")) == "later"
        found = session.get_one(queue, inspect(dead).identity)
        assert (found.deliver_at, found.deliver_in) == (None, None)
        times = dict(session.execute(select(queue.body, queue.deliver_at)).all())
        assert times == {"later": at, "acked": None, "dead": None}
        assert session.scalars(select(queue.body).where(queue.deliver_at > before)).all() == [
            "later"
        ]
        undue = select(queue.body).where(queue.deliver_at.is_(None)).order_by(queue.body)
        assert session.scalars(undue).all() == ["acked", "dead"]


@pulling_in_threads
def test_a_subquery_has_the_attributes_by_their_names(
    engine: Engine, make_queue: MakeQueue
) -> None:
    queue = make_queue(base=failures_base())
    message = queue(body="a", deliver_in=3600)
    enqueue(engine, message)
    for model in (queue, aliased(queue)):
        attributes = select(
            model.body,
            model.state,
            model.deliver_at,
            model.created_at,
            model.acked_at,
            model.failed_at,
        )
        for rows in (attributes.subquery(), attributes.cte()):
            with Session(engine) as session:
                [found] = session.execute(select(rows).where(rows.c.state == "scheduled"))
                [loaded] = session.scalars(select(queue))
            assert found._asdict() == {
                "body": "a",
                "state": "scheduled",
                "deliver_at": loaded.deliver_at,
                "created_at": loaded.created_at,
                "acked_at": None,
                "failed_at": None,
            }


def test_the_minimal_layout_has_no_creation_time(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue(layout="minimal")
    enqueue(engine, queue())
    with Session(engine) as session:
        assert session.scalars(select(queue)).one().created_at is None
        with pytest.raises(InvalidArgument, match=r"minimal layout of .* has no column"):
            session.scalars(select(queue).where(queue.created_at < datetime.now(UTC)))


def test_a_state_that_does_not_exist_is_refused() -> None:
    queue = make_queue_class(QueueOptions())
    with pytest.raises(InvalidArgument, match=r"state 'late': a message of .* is one of ready, "):
        queue.state == "late"  # noqa: B015
    with pytest.raises(InvalidArgument, match="only with MessageFailuresMixin"):
        queue.state.in_(["retrying"])


@pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b.name in ("sqlite", "mysql", "mariadb")], indirect=True
)
@pytest.mark.parametrize(
    ("layout", "condition"),
    [
        *(
            (layout, lambda queue, state=state: queue.state == state)
            for layout in ("portable", "minimal")
            for state in ("dead", "scheduled", "leased")
        ),
        ("portable", lambda queue: queue.deliver_at > datetime.now(UTC)),
    ],
)
def test_states_and_delivery_times_are_found_by_an_index(
    engine: Engine, make_queue: MakeQueue, layout: str, condition: Callable[[Any], Any]
) -> None:
    queue = make_queue(layout=layout)
    table = queue.__table__
    with engine.begin() as connection:
        acked = {"time_acked": 1, "time_next": None}
        connection.execute(insert(table), [acked for _ in range(3_000)])
        connection.execute(insert(table), [{} for _ in range(100)])
        statement = select(table.c.id).where(condition(queue), queue.body != "x")
        sql = statement.compile(engine, compile_kwargs={"literal_binds": True})
        if is_sqlite(engine.dialect):
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {sql}")).all()
            assert all("USING INDEX" in step[3] for step in plan), plan
        else:
            connection.execute(text(f"ANALYZE TABLE {table.name}"))
            (plan,) = connection.exec_driver_sql(f"EXPLAIN {sql}").mappings()
            assert plan["key"] in ("next_idx", "poller_idx"), plan
            assert int(plan["rows"]) < 500, plan
