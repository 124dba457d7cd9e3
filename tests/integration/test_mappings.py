"""A received instance holds what a query would bring, whatever the mapping and the transport."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    Enum,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    create_engine,
    func,
    inspect,
    literal,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DuplicateColumnError
from sqlalchemy.orm import (
    Session,
    column_property,
    composite,
    deferred,
    mapped_column,
    query_expression,
    synonym,
)

from sqla_vitess_messages import InvalidQueue, QueueOptions, Subscriber
from sqla_vitess_messages.table.reflect import check_database
from sqla_vitess_messages.transports.stream_base import BaseStreamTransport
from tests.backends import (
    BACKENDS,
    EVERYWHERE,
    STREAMS,
    Backend,
    ack,
    enqueue,
    make_queue_class,
    row,
)
from tests.servers import server_url

Subscribe = Callable[..., Any]
MakeQueue = Callable[..., type[Any]]


class Reversed(TypeDecorator[str]):
    """A type whose values are stored backwards."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Any) -> str | None:
        return None if value is None else value[::-1]

    def process_result_value(self, value: str | None, _dialect: Any) -> str | None:
        return None if value is None else value[::-1]


class Upper(TypeDecorator[str]):
    """A type whose values are read by an expression of SQL."""

    impl = String(40)
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return func.upper(column)


@dataclass(frozen=True)
class Point:
    """A value of two columns."""

    x: int
    y: int


class Mapping(NamedTuple):
    """The attributes of a model, what a message is made with, and what it must have when received.

    :param by_id: whether the stream can't bring it.
    """

    attributes: dict[str, Any]
    given: dict[str, Any]
    expected: dict[str, Any]
    by_id: bool = False


def _expression() -> Mapping:
    amount = mapped_column(Integer)
    attributes = {"amount": amount, "double": column_property(amount * 2)}
    return Mapping(attributes, {"amount": 5}, {"amount": 5, "double": 10}, by_id=True)


def _subquery() -> Mapping:
    amount = mapped_column(Integer)
    largest = column_property(select(func.max(amount)).scalar_subquery(), deferred=True)
    attributes = {"amount": amount, "largest": largest}
    return Mapping(attributes, {"amount": 5}, {"amount": 5, "largest": 5}, by_id=True)


def _composite() -> Mapping:
    x, y = mapped_column("px", Integer), mapped_column("py", Integer)
    attributes = {"x": x, "y": y, "point": composite(Point, "x", "y")}
    return Mapping(attributes, {"point": Point(1, 2)}, {"x": 1, "point": Point(1, 2)})


MAPPINGS: dict[str, Callable[[], Mapping]] = {
    "a column's key": lambda: Mapping(
        {"user": mapped_column("user_id", Integer, key="uid")}, {"user": 5}, {"user": 5}
    ),
    "keys that are names of other columns": lambda: Mapping(
        {
            "a": mapped_column("one", String(20), key="other"),
            "b": mapped_column("other", String(20), key="one"),
        },
        {"a": "1", "b": "2"},
        {"a": "1", "b": "2"},
        by_id=True,
    ),
    "a renamed attribute": lambda: Mapping(
        {"user": mapped_column("user_id", Integer)}, {"user": 5}, {"user": 5}
    ),
    "a synonym": lambda: Mapping(
        {"text": synonym("body")}, {"text": "x"}, {"body": "x", "text": "x"}
    ),
    "a deferred column": lambda: Mapping(
        {"note": deferred(mapped_column(String(20)))}, {"note": "x"}, {"note": "x"}
    ),
    "a deferred column that raises": lambda: Mapping(
        {"note": mapped_column(String(20), deferred=True, deferred_raiseload=True)},
        {"note": "x"},
        {"note": "x"},
    ),
    "a TypeDecorator": lambda: Mapping(
        {"note": mapped_column(Reversed)}, {"note": "abc"}, {"note": "abc"}
    ),
    "JSON": lambda: Mapping(
        {"data": mapped_column(JSON)}, {"data": {"ä": [1, None]}}, {"data": {"ä": [1, None]}}
    ),
    "an enum": lambda: Mapping(
        {"color": mapped_column(Enum("red", "grün"))}, {"color": "grün"}, {"color": "grün"}
    ),
    "a composite": _composite,
    "an expression": _expression,
    "a deferred subquery": _subquery,
    "a query_expression with a default": lambda: Mapping(
        {"seven": query_expression(literal(7))}, {}, {"seven": 7}, by_id=True
    ),
    "a type that is read by an expression": lambda: Mapping(
        {"note": mapped_column(Upper)}, {"note": "abc"}, {"note": "ABC"}, by_id=True
    ),
}


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The ids of the messages that streams have brought."""
    found: set[int] = set()
    deliver = BaseStreamTransport._deliver

    def record(self: Any, messages: Any, unloadable: Any = ()) -> None:
        found.update(message.id for message in messages)
        deliver(self, messages, unloadable)

    monkeypatch.setattr(BaseStreamTransport, "_deliver", record)
    return found


@pytest.fixture
def receive(
    engine: Engine, backend: Backend, subscribe: Subscribe, streamed: set[int]
) -> Callable[..., Any]:
    """Return a function that enqueues a message and returns it as the transport brings it."""

    def receive(model: type[Any], **given: Any) -> Any:
        subscriber = subscribe(model)
        ends_at = time.monotonic() + 30
        while time.monotonic() < ends_at:
            enqueue(engine, model(**given))
            message = subscriber.get(20)
            subscriber.ack(message).result(10)
            # The first ones may be pulled, before the stream has begun.
            if backend.transport not in STREAMS or message.id in streamed:
                return message
            time.sleep(0.2)
        raise AssertionError("the stream brought nothing")

    return receive


def unloaded(message: Any) -> set[str]:
    """Return the attributes whose values the instance lacks."""
    attributes = inspect(type(message)).column_attrs
    return inspect(message).unloaded & {attribute.key for attribute in attributes}


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_mapping_brings_the_same_over_each_transport(
    name: str, make_queue: MakeQueue, receive: Callable[..., Any]
) -> None:
    mapping = MAPPINGS[name]()
    message = receive(make_queue(attributes=mapping.attributes), **mapping.given)
    assert inspect(message).detached
    assert {name: getattr(message, name) for name in mapping.expected} == mapping.expected
    assert unloaded(message) == set()
    assert message.epoch == 0
    assert message.time_next == message.time_scheduled


on_streams = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.transport in STREAMS],
    indirect=True,
    ids=lambda backend: backend.name,
)


@on_streams
@pytest.mark.parametrize("name", MAPPINGS)
def test_only_what_a_stream_can_not_bring_is_selected(
    name: str, make_queue: MakeQueue, subscribe: Subscribe, caplog: pytest.LogCaptureFixture
) -> None:
    mapping = MAPPINGS[name]()
    with caplog.at_level("INFO", "sqla_vitess_messages"):
        subscribe(make_queue(attributes=mapping.attributes))
    told = [record for record in caplog.records if "loaded by SELECT" in record.getMessage()]
    assert bool(told) == mapping.by_id


@on_streams
def test_columns_that_are_not_streamed_are_loaded(
    make_queue: MakeQueue, receive: Callable[..., Any]
) -> None:
    queue = make_queue(message_cols=["id", "epoch", "time_scheduled"])
    message = receive(queue, body="hello", priority=3)
    assert unloaded(message) == set()
    assert (message.body, message.priority, message.epoch) == ("hello", 3, 0)


@pytest.mark.parametrize(
    "backend",
    [one for one in EVERYWHERE if one.server == "sharded"],
    indirect=True,
    ids=lambda one: one.name,
)
@pytest.mark.parametrize("by_id", [False, True])
def test_the_shards_column_may_have_a_key_and_another_attribute(
    engine: Engine, make_queue: MakeQueue, receive: Callable[..., Any], by_id: bool
) -> None:
    owner = mapped_column("tenant", BigInteger, key="owner_key", nullable=False)
    attributes: dict[str, Any] = {"owner": owner}
    if by_id:
        attributes["next_owner"] = column_property(owner + 1)
    queue = make_queue(attributes=attributes)
    message = receive(queue, owner=7)
    assert message.owner == 7
    assert row(engine, message).time_acked is not None


@pytest.mark.parametrize("backend", BACKENDS[:1], indirect=True, ids=lambda one: one.name)
def test_the_reasons_column_may_have_a_key(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    queue = make_queue(
        attributes={"why": mapped_column("fail_reason", String(20), key="why_key", nullable=True)}
    )
    enqueue(engine, queue())
    message = subscribe(queue).get(10)
    with Session(engine) as session, session.begin():
        message.fail(session, "broken")
    with Session(engine) as session:
        [dead] = queue.dead(session)
        assert dead.why == "broken"


@pytest.mark.parametrize(
    "options", [{}, {"unique_by": "tenant"}, {"ordered_by": "tenant"}], ids=str
)
def test_an_onupdate_runs_for_changes_of_the_user_alone(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, options: dict[str, Any]
) -> None:
    attributes = {
        "tenant": mapped_column("tenant", BigInteger, nullable=False, default=1),
        "editor": mapped_column(String(20), default="ada", onupdate=lambda: "bob"),
        "edits": mapped_column(Integer, default=0, onupdate=text("edits + 1")),
    }
    queue = make_queue(attributes=attributes, **options)
    enqueue(engine, queue(deliver_in=600))
    with Session(engine) as session, session.begin():
        assert queue.reschedule(session, queue.id > 0, deliver_in=900) == 1
        assert queue.run_now(session, queue.id > 0) == 1
    pulling = {"transport": "auto"} if "ordered_by" in options else {}
    subscriber = subscribe(queue, **pulling)

    def settle(action: str, *arguments: Any) -> None:
        message = subscriber.get(20)
        with Session(engine) as session, session.begin():
            message.extend(session, 60)
            if "unique_by" in options and action == "retry":
                assert queue.enqueue(session, queue(), if_exists="replace")
                message.extend(session, 60)
            getattr(message, action)(session, *arguments)

    settle("retry", 0)
    settle("fail")
    with Session(engine) as session, session.begin():
        assert queue.requeue(session) == 1
    settle("ack")
    with Session(engine) as session, session.begin():
        message = session.scalars(select(queue)).one()
        assert (message.editor, message.edits) == ("ada", 0)
        message.body = "changed"
        session.flush()
        session.refresh(message)
        assert (message.editor, message.edits) == ("bob", 1)


def test_a_column_can_not_take_the_key_of_the_queues() -> None:
    for column in (
        mapped_column("mine", String(20), key="epoch"),
        mapped_column("mine", String(20), key="priority"),
    ):
        # SQLAlchemy itself refuses the key of a column that the layout has.
        with pytest.raises((InvalidQueue, DuplicateColumnError), match="key"):
            make_queue_class(QueueOptions(layout="classic"), attributes={"mine": column})


TEXTS: dict[str, tuple[str, str | None, str]] = {
    "utf8mb4": ("utf8mb4", None, "äé€😀"),
    "utf8mb4 binary": ("utf8mb4", "utf8mb4_bin", "äé€😀"),
    "utf8mb3": ("utf8mb3", None, "äé€"),
    "ascii": ("ascii", None, "abc"),
    "latin1": ("latin1", None, "äé€"),
    "latin1 binary": ("latin1", "latin1_bin", "äé€"),
    "latin1 that looks like UTF-8": ("latin1", None, "Ã¤"),
    "latin2": ("latin2", None, "łä"),
    "cp1251": ("cp1251", None, "Привет"),
    "ucs2": ("ucs2", None, "äé€"),
    "utf16": ("utf16", None, "äé€😀"),
    "sjis": ("sjis", None, "日本"),
    "gbk": ("gbk", None, "中文"),
}
"""Character sets, a collation, and a text that they have."""


def _text_columns() -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for number, (charset, collation, _text) in enumerate(TEXTS.values()):
        varchar = mysql.VARCHAR(40, charset=charset, collation=collation)
        text = mysql.TEXT(charset=charset, collation=collation)
        for name, type_ in ((f"varchar_{number}", varchar), (f"text_{number}", text)):
            columns[name] = mapped_column(String(40).with_variant(type_, "mysql", "mariadb"))
    return columns


def _texts() -> dict[str, str]:
    texts = [text for _charset, _collation, text in TEXTS.values()]
    return {f"{kind}_{n}": text for kind in ("varchar", "text") for n, text in enumerate(texts)}


def test_received_text_is_what_was_stored_in_every_character_set(
    make_queue: MakeQueue, receive: Callable[..., Any]
) -> None:
    message = receive(make_queue(attributes=_text_columns()), **_texts())
    assert {name: getattr(message, name) for name in _texts()} == _texts()


@pytest.mark.parametrize(
    "backend",
    [b for b in BACKENDS if b.transport == "auto" and b.driver is None],
    indirect=True,
    ids=lambda b: b.name,
)
def test_a_copy_of_a_table_is_the_same_queue(
    make_queue: MakeQueue, engine: Engine, backend: Backend
) -> None:
    """As applications make that keep a copy of their tables for each tenant."""
    table = make_queue().__table__
    indexes = {index["name"] for index in inspect(engine).get_indexes(table.name)}
    table.drop(engine)
    copied = table.to_metadata(MetaData())
    copied.create(engine)
    assert copied.comment == table.comment
    assert {index["name"] for index in inspect(engine).get_indexes(table.name)} == indexes
    with engine.connect() as connection:
        check_database(connection, copied)


@on_streams
def test_text_in_utf_8_and_enums_are_streamed_as_they_are(
    make_queue: MakeQueue, receive: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    attributes = {
        "plain": mapped_column(mysql.VARCHAR(20, charset="utf8mb4", collation="utf8mb4_bin")),
        "small": mapped_column(mysql.TEXT(charset="utf8mb3")),
        "choice": mapped_column(mysql.ENUM("ä", "b", charset="latin1")),
    }
    values = {"plain": "ä😀", "small": "ä€", "choice": "ä"}
    with caplog.at_level("INFO", "sqla_vitess_messages"):
        message = receive(make_queue(attributes=attributes), **values)
    assert {name: getattr(message, name) for name in values} == values
    assert "loaded by SELECT" not in caplog.text


@on_streams
def test_text_is_right_though_its_character_set_changes_under_a_subscriber(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe, streamed: set[int]
) -> None:
    queue = make_queue(ack_wait=3, attributes={"note": mapped_column(mysql.VARCHAR(20))})
    subscriber = subscribe(queue)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"ALTER TABLE {queue.__tablename__} MODIFY note VARCHAR(20) CHARACTER SET latin1"
        )
    time.sleep(2)
    enqueue(engine, *(queue(note=text) for text in ("äé€", "plain") * 20))
    received: dict[int, Any] = {}
    while len(received) < 40:
        message = subscriber.get(20)
        received[message.id] = message
    assert sorted(message.note for message in received.values()) == ["plain"] * 20 + ["äé€"] * 20
    # But for those that were on their way when Vitess noticed the change, at the first attempt.
    assert [message.epoch for message in received.values()].count(0) > 20
    ack(engine, *received.values())


@pytest.mark.parametrize("charset", ["utf8", "latin1", "utf8mb4"])
@pytest.mark.parametrize(
    "backend",
    [
        *(one for one in BACKENDS if one.server in ("mysql", "mariadb", "vtgate-fast")),
        Backend("mysql-asyncio", "mysql", "auto", "asyncmy"),
        Backend("mysql-aiomysql", "mysql", "auto", "aiomysql"),
    ],
    indirect=True,
    ids=lambda one: one.name,
)
@pytest.mark.parametrize("as_engine", [False, True])
def test_received_text_does_not_depend_on_the_connections_character_set(
    engine: Engine,
    backend: Backend,
    url: str,
    make_queue: MakeQueue,
    subscribe: Subscribe,
    charset: str,
    as_engine: bool,
) -> None:
    if as_engine and backend.driver:
        pytest.skip("the adapter takes a URL")
    queue = make_queue(attributes={"note": mapped_column(mysql.VARCHAR(20, charset="utf8mb4"))})
    enqueue(engine, queue(note="äé€😀"))
    bind: Any = make_url(url).update_query_dict({"charset": charset})
    subscriber = subscribe(queue, create_engine(bind) if as_engine else bind)
    message = subscriber.get(20)
    assert message.note == "äé€😀"
    subscriber.ack(message).result(10)


@pytest.mark.parametrize(
    "backend",
    [one for one in BACKENDS if one.name == "vitess-grpc"],
    indirect=True,
    ids=lambda one: one.name,
)
def test_text_that_is_pulled_over_grpc_is_what_was_stored(
    engine: Engine, make_queue: MakeQueue
) -> None:
    queue = make_queue(attributes=_text_columns())
    enqueue(engine, queue(**_texts()))
    url = f"vitess+grpc://user@{server_url('vtgate grpc')}/main"
    with Subscriber(queue, url, transport="pull") as subscriber:
        message = subscriber.get(20)
        assert {name: getattr(message, name) for name in _texts()} == _texts()
        subscriber.ack(message).result(10)
