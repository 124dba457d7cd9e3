"""The model: its table in each layout, and the classes that are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    inspect,
    text,
)  # fmt: skip
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    declarative_base,
    declared_attr,
    mapped_column,
    registry,
    relationship,
)  # fmt: skip
from sqlalchemy.schema import CreateTable

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidArgumentType,
    InvalidQueue,
    MessageQueueMixin,
    QueueOptions,
)  # fmt: skip
from tests.backends import make_queue_class
from tests.servers import server_url

PORTABLE = ["time_scheduled", "id", "time_next", "epoch", "time_created", "time_acked", "priority"]
MINIMAL = ["id", "priority", "epoch", "time_next", "time_acked"]


@pytest.fixture
def base() -> type[DeclarativeBase]:
    class Base(DeclarativeBase):
        pass

    return Base


def ddl(model: type[Any]) -> str:
    """Return MySQL's CREATE TABLE in lower case, on one line, without quotes."""
    statement = str(CreateTable(model.__table__).compile(dialect=mysql.dialect()))
    flat = re.sub(r"\s+", " ", statement.replace("`", "")).strip().lower()
    return re.sub(r"\s*([(),])\s*", r"\1", flat)


def test_the_classic_table_is_exactly_the_original(base: Any) -> None:
    class Original(MessageQueueMixin, base):
        __tablename__ = "my_message"
        __queue__ = QueueOptions(layout="classic")
        message: Mapped[str | None] = mapped_column(String(128))

    assert ddl(Original) == (
        "create table my_message(time_scheduled bigint,id bigint,time_next bigint,epoch bigint,"
        "time_created bigint,time_acked bigint,message varchar(128),"
        "primary key(time_scheduled,id),unique index id_idx(id),index next_idx(time_next,epoch))"
        "comment='vitess_message,vt_ack_wait=30,vt_purge_after=86400,vt_batch_size=10,"
        "vt_cache_size=10000,vt_poller_interval=30'"
    )


def test_the_portable_table(base: Any) -> None:
    class Portable(MessageQueueMixin, base):
        __tablename__ = "my_message"
        message: Mapped[str | None] = mapped_column(String(128))

    assert ddl(Portable) == (
        "create table my_message(time_scheduled bigint not null,id bigint not null,"
        "time_next bigint default '0',epoch bigint not null default '0',time_created bigint,"
        "time_acked bigint,priority tinyint not null default '50',message varchar(128),"
        "primary key(time_scheduled,id),unique index id_idx(id),index next_idx(time_next,epoch),"
        "index poller_idx(time_acked,priority,time_next desc))"
        "comment='vitess_message,vt_ack_wait=30,vt_purge_after=86400,vt_batch_size=10,"
        "vt_cache_size=10000,vt_poller_interval=30,vt_message_cols=id|epoch|time_scheduled|"
        "time_next|time_created|time_acked|priority|message'"
    )


def test_the_minimal_table(base: Any) -> None:
    class Minimal(MessageQueueMixin, base):
        __tablename__ = "my_message"
        __queue__ = QueueOptions(layout="minimal")

    assert ddl(Minimal) == (
        "create table my_message(id bigint not null,priority tinyint not null default '50',"
        "epoch bigint not null default '0',time_next bigint default '0',time_acked bigint,"
        "primary key(id),index poller_idx(time_acked,priority,time_next desc))"
        "comment='vitess_message,vt_ack_wait=30,vt_purge_after=86400,vt_batch_size=10,"
        "vt_cache_size=10000,vt_poller_interval=30,"
        "vt_message_cols=id|epoch|priority|time_next|time_acked'"
    )


def with_own_mixins(base: Any) -> type[Any]:
    class Timestamps:
        touched: Mapped[int] = mapped_column(BigInteger, sort_order=-100)

    class Tenant:
        @declared_attr
        def tenant(cls) -> Mapped[int]:
            return mapped_column(Integer)

    class Message(Timestamps, MessageQueueMixin, Tenant, base):
        __tablename__ = "m"
        first: Mapped[int] = mapped_column(sort_order=-1_000_000)

    return Message


def with_the_base_first(base: Any) -> type[Any]:
    class Message(base, MessageQueueMixin):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

    return Message


def with_an_abstract_base(base: Any) -> type[Any]:
    class Queue(MessageQueueMixin, base):
        __abstract__ = True
        __queue__ = QueueOptions(ack_wait=7)
        common: Mapped[int]

    class Message(Queue):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

    assert "vt_ack_wait=7," in Message.__table__.comment
    return Message


def with_table_args_tuple(base: Any) -> type[Any]:
    class Message(MessageQueueMixin, base):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))
        __table_args__ = (UniqueConstraint("body"), Index("by_body", "body"), {"schema": None})

    assert {"by_body", "m_id_idx", "m_poller_idx"} <= {i.name for i in Message.__table__.indexes}
    return Message


def with_table_args_dict(base: Any) -> type[Any]:
    class Message(MessageQueueMixin, base):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))
        __table_args__ = {"mysql_engine": "InnoDB"}  # noqa: RUF012

    return Message


def with_a_dataclass_base(_base: Any) -> type[Any]:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Message(MessageQueueMixin, Base):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))
        note: Mapped[str | None] = mapped_column(String(10), default=None)

    message = Message("text", deliver_in=60, priority=3)
    assert (message.body, message.priority) == ("text", 3)
    assert message.deliver_in is not None
    assert message.deliver_in.total_seconds() > 59
    assert repr(message).endswith("(body='text', note=None)")
    return Message


def with_the_registry_decorator(_base: Any) -> type[Any]:
    @registry().mapped
    class Message(MessageQueueMixin):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

    return Message


def with_an_own_constructor(base: Any) -> type[Any]:
    class Message(MessageQueueMixin, base):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

        def __init__(self, body: str) -> None:
            self.body = body.upper()

    assert Message("x", deliver_in=5).body == "X"  # type: ignore[call-arg]
    return Message


def with_the_registry_function(_base: Any) -> type[Any]:
    class Message(MessageQueueMixin):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

    registry().map_declaratively(Message)
    return Message


def with_an_untyped_base(_base: Any) -> type[Any]:
    class Message(MessageQueueMixin, declarative_base()):  # type: ignore[misc]
        __tablename__ = "m"
        body = Column(String(10))

    return Message


def with_a_map_of_types(_base: Any) -> type[Any]:
    class Base(DeclarativeBase):
        type_annotation_map = {int: Integer, str: String(20)}  # noqa: RUF012

    class Message(MessageQueueMixin, Base):
        __tablename__ = "m"
        body: Mapped[str]

    assert type(Message.__table__.c.id.type) is BigInteger
    return Message


def with_automap(_base: Any) -> type[Any]:
    Base = automap_base()  # noqa: N806

    class Message(MessageQueueMixin, Base):  # type: ignore[misc,valid-type]
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

    engine = create_engine("sqlite://")
    Base.prepare(autoload_with=engine)
    engine.dispose()
    return Message


def with_bases_after_it_that_have_an_id(_base: Any) -> type[Any]:
    class Base(DeclarativeBase):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Identified:
        @declared_attr
        def id(cls) -> Mapped[str]:
            return mapped_column(String(36), primary_key=True)

    class Message(MessageQueueMixin, Identified, Base):
        __tablename__ = "m"
        body: Mapped[str] = mapped_column(String(10))

    assert Message().id > 0
    return Message


@pytest.mark.parametrize(
    "define",
    [with_own_mixins, with_the_base_first, with_an_abstract_base, with_table_args_tuple,
     with_table_args_dict, with_a_dataclass_base, with_the_registry_decorator,
     with_an_own_constructor, with_the_registry_function, with_an_untyped_base,
     with_a_map_of_types, with_automap, with_bases_after_it_that_have_an_id],
)  # fmt: skip
def test_the_queue_comes_first_whatever_the_user_adds(
    base: Any, define: Callable[[Any], type[Any]]
) -> None:
    model = define(base)
    assert [column.name for column in model.__table__.columns][:7] == PORTABLE
    engine = create_engine("sqlite://")
    model.__table__.metadata.create_all(engine)
    names = {index["name"] for index in inspect(engine).get_indexes("m")}
    assert {"m_id_idx", "m_next_idx", "m_poller_idx"} <= names
    assert "index poller_idx(time_acked,priority,time_next desc)" in ddl(model)
    engine.dispose()


@pytest.mark.parametrize("server", [None, "mysql", "mariadb", "vtgate"])
def test_payload_columns_may_be_reflected(server: str | None, tmp_path: Path) -> None:
    """The table then has its comment and its indexes already."""
    made = make_queue_class(QueueOptions())
    engine = create_engine(server_url(server) if server else f"sqlite:///{tmp_path}/test.db")
    made.metadata.create_all(engine)

    class Base(DeferredReflection, DeclarativeBase):
        __abstract__ = True

    class Message(MessageQueueMixin, Base):
        __tablename__ = made.__tablename__

    try:
        Base.prepare(engine)
        assert Message.__table__.columns.keys() == made.__table__.columns.keys()
        with Session(engine) as session, session.begin():
            session.add(Message(body="x", deliver_in=60))
            session.flush()
            assert Message.stats(session).scheduled == 1
        Message.metadata.drop_all(engine)
        Message.metadata.create_all(engine)
        names = {index["name"] for index in inspect(engine).get_indexes(made.__tablename__)}
        prefix = "" if server else f"{made.__tablename__}_"
        assert names == {f"{prefix}{name}_idx" for name in ("id", "next", "poller")}
    finally:
        made.metadata.drop_all(engine)
        engine.dispose()


def test_relationships_to_a_queue_are_the_users_own(base: Any) -> None:
    class User(base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Welcome(MessageQueueMixin, base):
        __tablename__ = "welcome"
        user_id: Mapped[int]
        user: Mapped[User] = relationship(primaryjoin="foreign(Welcome.user_id) == User.id")

    engine = create_engine("sqlite://")
    base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Welcome(user=User(id=3)))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT user_id FROM welcome")) == 3
    engine.dispose()


REFUSED = {
    "a column named like the queue's": ({"Epoch": mapped_column(Integer)}, {}, "'Epoch'"),
    "a hidden column of another layout": (
        {"priority_": mapped_column("priority", Integer)}, {"layout": "classic"}, "'priority'",
    ),
    "a comma in a name": ({"a": mapped_column("a,b", Integer)}, {}, "'a,b'"),
    "an equals sign in a name": ({"a": mapped_column("a=b", Integer)}, {}, "'a=b'"),
    "a bar in a name": ({"a": mapped_column("a|b", Integer)}, {}, "separate the parts"),
    "a primary key": ({"a": mapped_column(Integer, primary_key=True)}, {}, "primary_key=True off"),
    "an own id": ({"id": mapped_column(String(36), primary_key=True)}, {}, "id"),
    "an own epoch": ({"epoch": mapped_column(String(36))}, {}, "epoch"),
    "an own priority": ({"priority": mapped_column(Integer)}, {}, "priority"),
    "an unlimited sort_order": (
        {"a": mapped_column(Integer, sort_order=-9_000_000)}, {}, "sort_order",
    ),
    "an attribute named like a method": ({"ack": mapped_column(Integer)}, {}, "ack"),
    "a comment": ({"__table_args__": {"comment": "mine"}}, {}, "'mine'"),
    "an unknown streamed column": (
        {}, {"message_cols": ["id", "epoch", "time_scheduled", "nope"]}, "nope",
    ),
    "streaming without the epoch": ({}, {"message_cols": ["id", "time_scheduled"]}, "epoch"),
    "too long a comment": (
        {f"a{'x' * 60}{n}": mapped_column(Integer) for n in range(40)}, {}, "2048",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_class_that_cannot_be_a_queue_is_refused(base: Any, case: Any) -> None:
    attributes, options, message = case
    body = {"__tablename__": "m", "__queue__": QueueOptions(**options), **attributes}
    with pytest.raises(InvalidQueue, match=message.replace("|", r"\|")):
        type("Message", (MessageQueueMixin, base), body)
    assert "m" not in base.metadata.tables


def an_id_in_the_base() -> tuple[type[Any], ...]:
    class Base(DeclarativeBase):
        id: Mapped[int] = mapped_column(primary_key=True)

    return Base, MessageQueueMixin


def an_id_in_an_abstract_base() -> tuple[type[Any], ...]:
    class Base(DeclarativeBase):
        pass

    class Identified(Base):
        __abstract__ = True

        @declared_attr
        def id(cls) -> Mapped[str]:
            return mapped_column(String(36), primary_key=True)

    return Identified, MessageQueueMixin


def an_id_in_a_dataclass() -> tuple[type[Any], ...]:
    class Base(MappedAsDataclass, DeclarativeBase):
        id: Mapped[int] = mapped_column(init=False, primary_key=True)

    return Base, MessageQueueMixin


def an_id_in_a_mixin() -> tuple[type[Any], ...]:
    class Base(DeclarativeBase):
        pass

    class Identified:
        id: Mapped[int] = mapped_column(primary_key=True)

    return Identified, MessageQueueMixin, Base


def a_time_in_the_base() -> tuple[type[Any], ...]:
    class Base(DeclarativeBase):
        time_created: Mapped[int]

    return Base, MessageQueueMixin


def a_method_in_the_base() -> tuple[type[Any], ...]:
    class Base(DeclarativeBase):
        def retry(self) -> None:
            pass

    return Base, MessageQueueMixin


@pytest.mark.parametrize(
    "bases",
    [an_id_in_the_base, an_id_in_an_abstract_base, an_id_in_a_dataclass, an_id_in_a_mixin,
     a_time_in_the_base, a_method_in_the_base],
)  # fmt: skip
def test_a_base_before_the_mixin_that_hides_its_attributes_is_refused(
    bases: Callable[[], tuple[type[Any], ...]],
) -> None:
    found = bases()
    with pytest.raises(InvalidQueue, match="put MessageQueueMixin first") as caught:
        type("Message", found, {"__tablename__": "m"})
    assert f"Message: {found[0].__name__} has " in str(caught.value)


def by_table_attribute(cls: type[Any], table: Table) -> None:
    registry(metadata=table.metadata).mapped(type("M", (cls,), {"__table__": table}))


def imperatively(cls: type[Any], table: Table) -> None:
    registry(metadata=table.metadata).map_imperatively(cls, table)


@pytest.mark.parametrize("way", [by_table_attribute, imperatively])
@pytest.mark.parametrize("names", [PORTABLE, ["id", "body"]], ids=["the same columns", "others"])
def test_a_table_that_the_mixin_did_not_make_is_refused(
    way: Callable[[type[Any], Table], None], names: list[str]
) -> None:
    """Its columns lack the mixin's defaults, and may have other types."""
    table = Table("m", MetaData(), *(Column(name, BigInteger, primary_key=True) for name in names))
    with pytest.raises(InvalidQueue, match="with __tablename__ and without a Table"):
        way(type("Message", (MessageQueueMixin,), {}), table)


def test_inheriting_from_a_queue_is_refused(base: Any) -> None:
    class Message(MessageQueueMixin, base):
        __tablename__ = "m"

    with pytest.raises(InvalidQueue, match="abstract base"):
        type("Single", (Message,), {})
    with pytest.raises(InvalidQueue, match="abstract base"):
        type("Concrete", (Message,), {"__tablename__": "c", "__mapper_args__": {"concrete": True}})


def test_options_of_another_type_are_refused(base: Any) -> None:
    with pytest.raises(InvalidArgumentType, match="__queue__"):
        type("M", (MessageQueueMixin, base), {"__tablename__": "m", "__queue__": {"ack_wait": 3}})


@pytest.mark.parametrize(
    ("comment", "columns", "message"),
    [
        ("vitess_message,vt_ack_wait=30", MINIMAL, "lacks vt_purge_after"),
        (QueueOptions().to_comment(), MINIMAL[1:], "lacks the columns id"),
        (QueueOptions(message_cols=["id", "x"]).to_comment(), MINIMAL, "no column x"),
        ("my vitess_message", MINIMAL, "must begin with"),
    ],
)
def test_a_hand_made_message_table_is_checked_before_ddl(
    comment: str, columns: list[str], message: str
) -> None:
    metadata = MetaData()
    Table("m", metadata, *(Column(name, BigInteger) for name in columns), comment=comment)
    engine = create_engine("sqlite://")
    with pytest.raises(InvalidQueue, match=message):
        metadata.create_all(engine)
    assert not inspect(engine).has_table("m")
    engine.dispose()


def test_classic_is_refused_on_a_new_vitess(base: Any) -> None:
    class Classic(MessageQueueMixin, base):
        __tablename__ = "classic_on_new_vitess"
        __queue__ = QueueOptions(layout="classic")

    engine = create_engine(server_url("vtgate"))
    with pytest.raises(InvalidQueue, match="layout='portable'"):
        base.metadata.create_all(engine)
    assert not inspect(engine).has_table("classic_on_new_vitess")
    engine.dispose()


@pytest.mark.parametrize("server", ["mysql", "mariadb", "vtgate"])
def test_the_server_has_the_table_as_designed(server: str, make_table: Any) -> None:
    engine, model = make_table(server)
    created = engine.connect().execute(text(f"SHOW CREATE TABLE {model.__tablename__}")).one()[1]
    assert "UNIQUE KEY `id_idx` (`id`)" in created
    assert "KEY `poller_idx` (`time_acked`,`priority`,`time_next` DESC)" in created
    assert f"COMMENT='{model.__table__.comment}'" in created


@pytest.fixture
def make_table() -> Any:
    made: list[tuple[Engine, type[Any]]] = []

    def make(server: str) -> tuple[Engine, type[Any]]:
        engine = create_engine(server_url(server))
        model = make_queue_class(QueueOptions())
        model.metadata.create_all(engine)
        made.append((engine, model))
        return made[-1]

    yield make
    for engine, model in made:
        model.metadata.drop_all(engine)
        engine.dispose()


def test_arguments_of_a_settlement_are_checked(base: Any) -> None:
    class Message(MessageQueueMixin, base):
        __tablename__ = "m"

    class Other(MessageQueueMixin, base):
        __tablename__ = "o"

    engine = create_engine("sqlite://")
    base.metadata.create_all(engine)
    with Session(engine) as session:
        with pytest.raises(InvalidArgument, match="never enqueued"):
            Message().ack(session)
        with pytest.raises(InvalidArgumentType, match="is not a Message"):
            Message.ack_all(session, [Other()])  # type: ignore[list-item]
        message = Message()
        session.add(message)
        session.flush()
        with pytest.raises(InvalidArgumentType, match="AsyncSession"):
            message.ack("session")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="delay=-1"):
            message.retry(session, delay=-1)
        with pytest.raises(InvalidArgument, match="seconds=0"):
            message.extend(session, 0)
    engine.dispose()
