"""Ordered queues before any database is involved: options, columns, places."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, String, create_engine, insert, literal, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    relationship,
)
from sqlalchemy.schema import CreateTable, ForeignKey

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidQueue,
    MessageQueueMixin,
    QueueOptions,
    clock,
)
from sqla_vitess_messages.rows.places import next_place
from sqla_vitess_messages.testing import drain
from tests.backends import make_queue_class


def make_ordered(attributes: dict[str, Any] | None = None, **options: Any) -> type[Any]:
    columns = {"tenant": mapped_column(BigInteger, nullable=False)} | (attributes or {})
    return make_queue_class(QueueOptions(**{"ordered_by": "tenant", **options}), attributes=columns)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ordered_by": 5}, TypeError, "ordered_by=5: expected one column's name, or several"),
        ({"ordered_by": []}, TypeError, "ordered_by"),
        ({"ordered_by": ("a", "a")}, ValueError, "ordered_by=.*names a column twice"),
        ({"halt_on_dead": True}, ValueError, "only a queue with ordered_by"),
        ({"ordered_by": "a", "halt_on_dead": 1}, TypeError, "halt_on_dead=1: expected a bool"),
        (
            {"ordered_by": "a", "shard_by": ("b", "a"), "vindex": "hash"},
            ValueError,
            "ordered_by=.*lacks b of shard_by",
        ),
        ({"ordered_by": "a", "unique_by": "b"}, ValueError, "unique_by=.*lacks a of ordered_by"),
    ],
)
def test_options_that_make_no_order_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        QueueOptions(**options)


@pytest.mark.parametrize(
    ("column", "name", "text"),
    [
        ({}, "other", "it has no column 'other'"),
        ({"key": mapped_column(BigInteger, nullable=True)}, "key", "'key' may be NULL"),
        ({}, "id", "'id' belongs to the queue"),
        ({}, "seq", "'seq' belongs to the queue"),
        ({"seq": mapped_column(BigInteger)}, "tenant", "has a column 'seq' of its own"),
        ({"Seq_Open": mapped_column(BigInteger)}, "tenant", "has a column 'seq_open' of its own"),
    ],
)
def test_columns_that_can_be_no_key_are_refused(
    column: dict[str, Any], name: str, text: str
) -> None:
    with pytest.raises(InvalidQueue, match=text):
        make_ordered(column, ordered_by=name)


def test_the_columns_of_the_order_follow_the_payload_and_are_not_streamed() -> None:
    queue = make_ordered()
    assert [column.name for column in queue.__table__.columns][-2:] == ["seq", "seq_open"]
    assert "seq" not in queue.__table__.comment
    assert "seq" in queue.__mapper__.attrs
    assert "seq_open" not in queue.__mapper__.attrs
    for dialect in (mysql.dialect(), sqlite.dialect()):
        ddl = str(CreateTable(queue.__table__).compile(dialect=dialect))
        assert "(CASE WHEN (time_acked IS NULL AND time_next < 9223372036854775807)" in ddl
        assert "STORED" in ddl
    assert "INDEX order_idx (seq_open, tenant, seq, id)" in str(
        CreateTable(queue.__table__).compile(dialect=mysql.dialect())
    )
    halting = make_ordered(halt_on_dead=True)
    assert "(CASE WHEN (time_acked IS NULL) THEN 1 END)" in str(
        CreateTable(halting.__table__).compile(dialect=mysql.dialect())
    )


@pytest.mark.parametrize("layout", ["portable", "classic", "minimal"])
def test_each_layout_can_be_ordered(layout: str) -> None:
    queue = make_ordered(layout=layout)
    engine = create_engine("sqlite://")
    queue.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(queue(tenant=1, body=f"{n}") for n in range(3))
        session.add(queue(tenant=2, body="other", deliver_in=60))
    done: list[str] = []
    assert len(drain(queue, lambda: Session(engine), lambda m, _s: done.append(m.body))) == 3
    assert done == ["0", "1", "2"]


def test_drain_keeps_the_order_though_a_message_is_later() -> None:
    queue = make_ordered()
    engine = create_engine("sqlite://")
    queue.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(queue(tenant=1, body="0", deliver_in=60))
        session.add(queue(tenant=1, body="1", priority=1))
        session.add(queue(tenant=2, body="other"))
    [handled] = drain(queue, lambda: Session(engine), lambda *_: None)
    assert handled.body == "other"


def test_a_queue_without_order_may_have_columns_of_these_names() -> None:
    queue = make_queue_class(
        QueueOptions(), attributes={"seq": mapped_column(String(5)), "seq_open": Column(String(5))}
    )
    assert queue(seq="a").seq == "a"


def test_places_grow_strictly_from_thread_to_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the clock stands still, or goes back."""
    now = clock.now()
    monkeypatch.setattr(clock, "wall_clock", lambda: now)
    places: list[list[int]] = [[] for _ in range(4)]

    def take(into: list[int]) -> None:
        into.extend(next_place() for _ in range(500))

    threads = [threading.Thread(target=take, args=(into,)) for into in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = sorted(place for some in places for place in some)
    assert len(set(everything)) == 2000
    assert all(some == sorted(some) for some in places)
    monkeypatch.setattr(clock, "wall_clock", lambda: now - 10**12)
    assert next_place() > everything[-1]


def test_the_order_is_that_of_add_though_a_flush_inserts_in_another_order() -> None:
    """Messages that refer to one another are inserted as their references demand."""

    class Base(DeclarativeBase):
        pass

    class Step(MessageQueueMixin, Base):
        __tablename__ = "step"
        __queue__ = QueueOptions(ordered_by="job", layout="minimal")
        job: Mapped[int]
        after_id: Mapped[int | None] = mapped_column(ForeignKey("step.id"))
        after: Mapped[Any] = relationship("Step", remote_side="Step.id")

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    inserted: list[int] = []
    with Session(engine) as session, session.begin():
        last = Step(id=3, job=1)
        middle = Step(id=2, job=1, after=last)
        first = Step(id=1, job=1, after=middle)
        session.add(first)  # Its references are added after it.
        session.flush()
        inserted += session.scalars(select(Step.id).order_by(Step.seq))
    assert inserted == [1, 2, 3]


def test_a_dataclass_and_a_model_take_a_place() -> None:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Event(MessageQueueMixin, Base):
        __tablename__ = "event"
        __queue__ = QueueOptions(ordered_by="thing")
        thing: Mapped[int]

    assert Event(thing=1, seq=7).seq == 7  # type: ignore[call-arg, attr-defined]
    assert make_ordered()(tenant=1, seq=7).seq == 7


def test_an_insert_from_a_select_has_to_select_places() -> None:
    queue = make_ordered()
    engine = create_engine("sqlite://")
    queue.metadata.create_all(engine)
    statement = insert(queue).from_select(["id", "tenant", "body"], select(literal(1), literal(2),
                                          literal("a")))  # fmt: skip
    with engine.begin() as connection, pytest.raises(InvalidArgument, match="select a seq"):
        connection.execute(statement)


def test_messages_enqueued_together_are_in_their_order_and_replaced_in_their_place() -> None:
    queue = make_ordered(unique_by=("tenant", "body"))
    engine = create_engine("sqlite://")
    queue.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        queue.enqueue_all(session, [queue(tenant=1, body=body) for body in "zcxa"])
        queue.enqueue(session, queue(tenant=1, body="c", priority=7), if_exists="replace")
        with pytest.raises(InvalidArgument, match="seq=-1"):
            queue.enqueue(session, queue(tenant=1, body="b", seq=-1))
        found = session.execute(select(queue.body, queue.priority).order_by(queue.seq)).all()
    assert [tuple(one) for one in found] == [("z", 50), ("c", 7), ("x", 50), ("a", 50)]
