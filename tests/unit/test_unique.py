"""Unique queues: what is refused, and what becomes of the class and its table."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import BigInteger, LargeBinary, String, Uuid, create_engine, func, select
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateTable

from sqla_vitess_messages import (
    AlreadyEnqueued,
    InvalidArgument,
    InvalidArgumentType,
    InvalidQueue,
    MessageQueueMixin,
    QueueOptions,
    emits,
    on_commit,
)
from sqla_vitess_messages.rows.epochs import GENERATION, after_replacement, attempts
from sqla_vitess_messages.table.options import queue_options


def make(attributes: dict[str, Any] | None = None, **options: Any) -> type[Any]:
    body = {
        "__tablename__": "reindex",
        "__queue__": QueueOptions(**({"unique_by": "product"} | options)),
        "__module__": __name__,
        "product": mapped_column("product", BigInteger, nullable=False),
        "reason": mapped_column("reason", String(50), nullable=True),
        **(attributes or {}),
    }
    base = type("Base", (DeclarativeBase,), {})
    return type("Reindex", (MessageQueueMixin, base), body)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unique_by": "sku"}, "it has no column 'sku'"),
        ({"unique_by": "reason"}, "may be NULL"),
        ({"unique_by": "id"}, "belongs to the queue"),
        ({"unique_by": ("product", "time_next")}, "belongs to the queue"),
        ({"unique_by": ("product", "product")}, "names a column twice"),
        ({"shard_by": "reason", "vindex": "hash"}, "lacks reason of shard_by"),
        ({"message_cols": ["id", "epoch", "time_scheduled", "product"]}, "lacks revision"),
        (
            {"message_cols": ["id", "epoch", "time_scheduled", "product", "revision", "unsettled"]},
            "has no column unsettled",
        ),
    ],
)
def test_a_key_that_cannot_work_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        make(**options)


@pytest.mark.parametrize("value", [7, (), ("",), (1,), ("product", None)])
def test_what_names_no_columns_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentType, match="unique_by"):
        QueueOptions(unique_by=value)


@pytest.mark.parametrize("name", ["revision", "next_due", "unsettled"])
def test_a_payload_column_of_the_queues_own_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidQueue, match=f"{name}.*of its own"):
        make({name: mapped_column(name, BigInteger)})
    plain = make({name: mapped_column(name, BigInteger)}, unique_by=None)
    assert name in plain.__mapper__.attrs


@pytest.mark.parametrize("layout", ["portable", "classic", "minimal"])
def test_the_queues_own_columns_follow_the_payload(layout: Any) -> None:
    model = make(layout=layout)
    names = [column.name for column in model.__table__.columns]
    assert names[-5:] == ["product", "reason", "revision", "next_due", "unsettled"]
    assert "revision" in model.__mapper__.attrs
    assert not {"next_due", "unsettled"} & {*model.__mapper__.attrs.keys()}
    streamed = queue_options(model.__table__).message_cols
    assert streamed is None if layout == "classic" else streamed[-1] == "revision"


def test_the_ddl_has_a_virtual_column_and_a_unique_index() -> None:
    ddl = str(CreateTable(make().__table__).compile(dialect=mysql.dialect()))
    assert "unsettled TINYINT GENERATED ALWAYS AS (CASE WHEN (time_acked IS NULL" in ddl
    assert "VIRTUAL" in ddl
    assert "UNIQUE INDEX unique_idx (product, unsettled)" in ddl


@pytest.fixture
def session() -> Any:
    model = make()
    engine = create_engine("sqlite://")
    model.metadata.create_all(engine)
    with Session(engine) as session:
        session.info["model"] = model
        yield session
    engine.dispose()


REFUSED: list[tuple[Callable[[type[Any]], Any], dict[str, Any], type[Exception], str]] = [
    (lambda model: model(product=1), {"if_exists": "ignore"}, InvalidArgument, "'ignore'"),
    (lambda model: model(), {}, InvalidArgument, "product=None"),
    (lambda model: model(product=func.abs(1)), {}, InvalidArgument, "SQL expression"),
    (lambda model: model(product=1, priority=1000), {}, InvalidArgument, "priority"),
    (lambda _model: "reindex", {}, InvalidArgumentType, "'reindex'"),
]


@pytest.mark.parametrize(("message", "options", "error", "says"), REFUSED)
def test_what_cannot_be_enqueued_is_refused(
    session: Session, message: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    model = session.info["model"]
    with pytest.raises(error, match=says):
        model.enqueue(session, message(model), **options)


def test_a_message_with_a_row_is_refused(session: Session) -> None:
    model = session.info["model"]
    message = model(product=1)
    session.add(message)
    session.flush()
    with pytest.raises(InvalidArgument, match="enqueued already"):
        model.enqueue(session, message)


def test_two_messages_of_one_key_are_refused_unless_one_is_skipped(session: Session) -> None:
    model = session.info["model"]
    batch = [model(product=1, reason="a"), model(product=1, reason="b")]
    with pytest.raises(AlreadyEnqueued, match="product=1"):
        model.enqueue_all(session, batch)
    assert model.enqueue_all(session, batch, if_exists="skip") == 1
    assert session.scalars(select(model.reason)).all() == ["a"]
    assert model.enqueue_all(session, [], if_exists="replace") == 0


class Color(Enum):
    RED = "the secret of red"


def test_keys_of_every_type_are_shown(session: Session) -> None:
    columns = {
        "number": mapped_column("number", Uuid, nullable=False),
        "color": mapped_column("color", EnumType(Color), nullable=False),
        "digest": mapped_column("digest", LargeBinary(2), nullable=False),
    }
    model = make(columns, unique_by=("number", "color", "digest"))
    model.metadata.create_all(session.connection(), tables=[])
    session.connection().execute(CreateTable(model.__table__, if_not_exists=True))
    key = {"number": UUID(int=7), "color": Color.RED, "digest": b"\0\xff"}
    shown = f"number={UUID(int=7)!r}, color=Color.RED, digest=bytes.fromhex('00ff')"
    with pytest.raises(AlreadyEnqueued, match=re.escape(shown)):
        model.enqueue_all(session, [model(product=1, **key), model(product=2, **key)])


def test_a_queue_without_a_key_can_only_raise() -> None:
    model = make(unique_by=None)
    engine = create_engine("sqlite://")
    model.metadata.create_all(engine)
    with Session(engine) as session:
        assert model.enqueue(session, model(product=1))
        assert model.enqueue_all(session, [model(product=1) for _ in range(3)]) == 3
        with pytest.raises(InvalidArgument, match="unique_by"):
            model.enqueue(session, model(product=1), if_exists="skip")
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection, pytest.raises(InvalidArgument, match="autocommit"):
        model.enqueue(connection, model(product=1))
    engine.dispose()


def test_a_payload_column_named_revision_is_enqueued_without_a_key() -> None:
    model = make({"revision": mapped_column("revision", BigInteger)}, unique_by=None)
    engine = create_engine("sqlite://")
    model.metadata.create_all(engine)
    with Session(engine) as session:
        model.enqueue(session, model(product=1, revision=5))
        assert session.scalar(select(model.revision)) == 5
    engine.dispose()


def test_hooks_refuse_another_value_at_once(session: Session) -> None:
    with pytest.raises(InvalidArgument, match="if_exists='drop'"):
        on_commit(session, lambda: None, if_exists="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="if_exists='drop'"):
        emits(session.info["model"], "insert", if_exists="drop")  # type: ignore[call-overload]


def test_defaults_of_the_key_count(session: Session) -> None:
    columns = {
        "tenant": mapped_column("tenant", BigInteger, nullable=False, default=7),
        "area": mapped_column("area", String(10), nullable=False, default=lambda: "eu"),
    }
    model = make(columns, unique_by=("tenant", "area"))
    model.metadata.create_all(session.connection(), tables=[])
    session.connection().execute(CreateTable(model.__table__, if_not_exists=True))
    with pytest.raises(AlreadyEnqueued, match="tenant=7, area='eu'"):
        model.enqueue_all(session, [model(product=1), model(product=2)])


def test_a_default_of_the_key_may_depend_on_other_values(session: Session) -> None:
    model = make({"slug": slug(lambda c: c.get_current_parameters()["reason"])}, unique_by="slug")
    session.connection().execute(CreateTable(model.__table__, if_not_exists=True))
    with pytest.raises(AlreadyEnqueued, match="slug='same'"):
        model.enqueue_all(session, [model(product=n, reason="same") for n in (1, 2)])


def test_a_default_of_the_key_that_needs_the_insert_is_refused(session: Session) -> None:
    model = make({"slug": slug(lambda c: c.connection.engine.name)}, unique_by="slug")
    with pytest.raises(InvalidArgument, match=r"reindex.slug: its default uses 'connection'"):
        model.enqueue(session, model(product=1))


def slug(default: Callable[[Any], str]) -> Any:
    return mapped_column("slug", String(20), nullable=False, default=default)


def test_a_replacement_is_in_the_next_generation() -> None:
    for epoch in (0, 1, 5, GENERATION, GENERATION + 1, 7 * GENERATION + 9):
        following = after_replacement(epoch)
        assert isinstance(following, int)
        assert following > epoch
        assert attempts(following) == 0
        assert following - epoch <= GENERATION


def test_a_flush_does_not_change_the_revision(session: Session) -> None:
    model = session.info["model"]
    message = model(product=1)
    session.add(message)
    session.commit()
    message.revision = 5
    message.reason = "changed"
    session.commit()
    assert (message.revision, message.reason) == (0, "changed")


class _Typed(DeclarativeBase):
    pass


class Typed(MessageQueueMixin, _Typed):
    """The methods are typed by the model."""

    __tablename__ = "typed_reindex"
    __queue__ = QueueOptions(unique_by="product")
    product: Mapped[int]


def test_the_methods_are_typed() -> None:
    engine = create_engine("sqlite://")
    _Typed.metadata.create_all(engine)
    with Session(engine) as session:
        enqueued: bool = Typed.enqueue(session, Typed(product=1), if_exists="skip")
        count: int = Typed.enqueue_all(session, [Typed(product=1)], if_exists="replace")
    assert (enqueued, count) == (True, 1)
    engine.dispose()
