"""Enqueueing: every kind of insert fills the same columns, in one INSERT."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Session

from sqla_vitess_messages import InvalidArgument, InvalidArgumentType, QueueOptions
from tests.backends import make_queue_class

DAY = 86_400 * 10**9


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


@pytest.fixture(params=["portable", "minimal", "classic"])
def queue(request: pytest.FixtureRequest, engine: Engine) -> type[Any]:
    model = make_queue_class(QueueOptions(layout=request.param))
    model.metadata.create_all(engine)
    return model


def by_add(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.add(queue(body="x"))


def by_core(engine: Engine, queue: type[Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(queue).values(body="x"))


def by_core_table(engine: Engine, queue: type[Any]) -> None:
    with engine.begin() as connection:
        connection.execute(queue.__table__.insert(), [{"body": "x"}])


def by_bulk(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.execute(insert(queue), [{"body": "x"}])


def by_bulk_save(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.bulk_insert_mappings(queue, [{"body": "x"}])


def by_multiple_values(engine: Engine, queue: type[Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(queue).values([{"body": "x"}]))


def by_multiple_values_in_a_session(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.execute(insert(queue).values([{"body": "x"}]))


def by_an_upsert(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.execute(sqlite.insert(queue).values([{"body": "x"}]).on_conflict_do_nothing())


def by_returning(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        [message] = session.scalars(insert(queue).returning(queue), [{"body": "x"}])
        assert message.id == session.scalar(select(queue.id))


WAYS = [
    by_add, by_core, by_core_table, by_bulk, by_bulk_save, by_multiple_values,
    by_multiple_values_in_a_session, by_an_upsert, by_returning,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_fills_the_same_columns(engine: Engine, queue: type[Any], way: Any) -> None:
    before = time.time_ns()
    way(engine, queue)
    after = time.time_ns()
    with engine.connect() as connection:
        row = connection.execute(select(queue.__table__)).one()._mapping
    assert 1 <= row["id"] < 2**63
    assert before <= row["time_next"] <= after
    assert (row["epoch"], row["time_acked"], row["body"]) == (0, None, "x")
    if "priority" in row:
        assert row["priority"] == 50
    if "time_scheduled" in row:
        assert row["time_scheduled"] == row["time_created"] == row["time_next"]


@pytest.mark.parametrize("name", ["time_scheduled", "time_next"])
def test_core_takes_either_time_for_a_later_delivery(engine: Engine, name: str) -> None:
    queue = make_queue_class(QueueOptions())
    queue.metadata.create_all(engine)
    later = time.time_ns() + DAY
    with engine.begin() as connection:
        connection.execute(insert(queue), [{name: later}])
        row = connection.execute(select(queue.__table__)).one()
    assert row.time_scheduled == row.time_next == later
    assert row.time_created < later


@pytest.mark.parametrize("context", [None, {}, object()], ids=["None", "dict", "object"])
def test_column_defaults_need_no_execution_context(queue: type[Any], context: object) -> None:
    """As sqladmin, Flask-Admin, starlette-admin and Litestar's DTOs call them for their forms."""
    before = time.time_ns()
    values = {
        column.name: column.default.arg(context)
        if column.default.is_callable
        else column.default.arg
        for column in queue.__table__.columns
        if column.default is not None
    }
    after = time.time_ns()
    assert 0 < values.pop("id") < 2**63
    assert values.pop("body") == ""
    assert values.pop("epoch") == 0
    assert values.pop("priority", 50) == 50
    assert all(before <= value <= after for value in values.values())


def test_a_column_default_can_be_executed(engine: Engine, queue: type[Any]) -> None:
    with engine.connect() as connection:
        for name in ("id", "time_next", "time_scheduled", "time_created"):
            if name in queue.__table__.c:
                assert connection.scalar(queue.__table__.c[name].default) > 0


def test_a_form_that_was_filled_by_the_defaults_makes_a_message_that_is_due(
    engine: Engine, queue: type[Any]
) -> None:
    message = queue()
    for column in queue.__table__.columns:
        default = column.default
        if default is not None and not column.primary_key:
            setattr(message, column.name, default.arg(None) if default.is_callable else default.arg)
    with Session(engine) as session, session.begin():
        session.add(message)
    with Session(engine) as session:
        assert queue.stats(session).ready == 1


def test_a_row_of_default_values_may_be_the_only_one(engine: Engine, queue: type[Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(queue))
        connection.execute(insert(queue), [{}])
    with Session(engine) as session:
        assert queue.stats(session).ready == 2


def test_an_insert_from_select_is_refused_also_for_one_row(
    engine: Engine, queue: type[Any]
) -> None:
    by_core(engine, queue)
    statement = insert(queue).from_select(["body"], select(queue.body))
    with Session(engine) as session:
        with pytest.raises(InvalidArgument, match="INSERT … SELECT") as caught:
            session.execute(statement)
        assert queue.__tablename__ in str(caught.value)


def test_ids_differ_and_a_given_one_is_kept(engine: Engine, queue: type[Any]) -> None:
    assert len({queue().id for _ in range(1_000)}) == 1_000
    with Session(engine) as session, session.begin():
        session.add(queue(id=17))
    with engine.connect() as connection:
        assert connection.execute(select(queue.__table__.c.id)).scalar_one() == 17


def test_everything_is_on_the_instance_before_the_flush(queue: type[Any]) -> None:
    message = queue(body="x")
    for column in queue.__table__.columns:
        if column.name != "time_acked":
            assert getattr(message, column.name) is not None


def test_a_thousand_messages_are_one_insert(engine: Engine, queue: type[Any]) -> None:
    statements: list[tuple[str, bool]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _cur, statement, _p, _ctx, many: statements.append((statement[:6], many)),
    )
    with Session(engine) as session, session.begin():
        session.add_all([queue(body=str(number)) for number in range(1_000)])
    assert statements == [("INSERT", True)]


@pytest.mark.parametrize("delay", [60, 60.0, timedelta(minutes=1)])
def test_deliver_in_counts_from_now(queue: type[Any], delay: Any) -> None:
    for message in (queue(deliver_in=delay), queue()):
        message.deliver_in = delay
        assert abs(message.time_next - time.time_ns() - 60 * 10**9) < 5 * 10**9
        if "time_scheduled" in queue.__table__.c:
            assert message.time_scheduled == message.time_next


def test_deliver_at_is_the_given_moment(queue: type[Any]) -> None:
    at = datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert queue(deliver_at=at).deliver_at == at
    message = queue()
    message.deliver_at = at
    assert message.time_next == 1904274489123456000


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"deliver_at": datetime(2030, 1, 1)}, InvalidArgument, "time zone"),
        ({"deliver_at": "2030-01-01"}, InvalidArgumentType, "deliver_at='2030-01-01'"),
        ({"deliver_at": datetime(1969, 1, 1, tzinfo=UTC)}, InvalidArgument, "1970"),
        ({"deliver_in": -1}, InvalidArgument, "deliver_in=-1"),
        ({"deliver_in": "soon"}, InvalidArgumentType, "deliver_in='soon'"),
        ({"deliver_in": float("nan")}, InvalidArgument, "deliver_in=nan"),
        (
            {"deliver_in": 1, "deliver_at": datetime(2030, 1, 1, tzinfo=UTC)},
            InvalidArgument, "one of the two",
        ),
    ],
)  # fmt: skip
def test_a_bad_delivery_time_is_refused_at_once(
    queue: type[Any], arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        queue(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"priority": 128}, InvalidArgument, r"Message.priority=128: expected from -128 to 127"),
        ({"priority": "high"}, InvalidArgumentType, "priority='high'"),
        ({"id": 0}, InvalidArgument, "id=0"),
        ({"id": 2**63}, InvalidArgument, "id=9223372036854775808"),
        ({"id": "x"}, InvalidArgumentType, "id='x'"),
        ({"time_acked": 5}, InvalidArgument, "time_acked=5"),
        ({"time_next": 1.5}, InvalidArgumentType, "time_next=1.5"),
    ],
)
def test_a_value_that_cannot_be_delivered_is_refused_before_the_insert(
    engine: Engine, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    queue = make_queue_class(QueueOptions())
    queue.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(queue(**arguments))
        with pytest.raises(error, match=text):
            session.flush()


def test_delivery_cannot_be_moved_once_enqueued(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session:
        message = queue()
        session.add(message)
        session.flush()
        with pytest.raises(InvalidArgument, match="retry"):
            message.deliver_in = 5


def test_a_rolled_back_savepoint_leaves_nothing(engine: Engine, queue: type[Any]) -> None:
    with Session(engine) as session, session.begin():
        session.add(queue(body="kept"))
        with session.begin_nested() as savepoint:
            session.add(queue(body="dropped"))
            savepoint.rollback()
    with engine.connect() as connection:
        assert connection.scalars(select(queue.__table__.c.body)).all() == ["kept"]
