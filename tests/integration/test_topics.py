"""Events that are published to all queues of a topic."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Optional

import pytest
from sqlalchemy import BigInteger, Engine, Numeric, String, create_engine, event, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    declared_attr,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidArgumentType,
    MessageQueueMixin,
    QueueOptions,
    Topic,
    emits,
    hooks,
    on_commit,
    random_id,
)
from tests.backends import PULLING, Backend, async_url

Seven = Annotated[int, mapped_column(default=7)]


class Shop:
    """A topic with two queues, and a model whose changes are emitted."""

    def __init__(self, engine: Engine, make_queue: Callable[..., type[Any]]) -> None:
        class OrderPlaced(Topic):
            order_id: Mapped[int] = mapped_column(BigInteger)
            total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
            note: Mapped[str | None] = mapped_column(String(50))

        def wants(cls: Any, event: OrderPlaced) -> bool:
            return event.total > 100

        self.make_queue = make_queue
        self.engine = engine
        self.topic: Any = OrderPlaced
        self.bills = self.queue(OrderPlaced)
        self.mails = self.queue(OrderPlaced, wants=classmethod(wants))

    def queue(
        self, *topics: type[Topic], options: dict[str, Any] | None = None, **attributes: Any
    ) -> Any:
        """Return a new queue of topics."""
        base = type("Base", (DeclarativeBase,), {})
        abstract = type("Abstract", (*topics, base), {"__abstract__": True})
        return self.make_queue(abstract, attributes, **(options or {}))

    def session(self, **options: Any) -> Session:
        return Session(self.engine, **options)

    def orders(self, queue: Any) -> list[int]:
        with self.session() as session:
            return sorted(session.scalars(select(queue.order_id)))


@pytest.fixture
def shop(engine: Engine, make_queue: Callable[..., type[Any]]) -> Any:
    yield Shop(engine, make_queue)
    hooks._emitters.clear()


def test_an_event_is_enqueued_once_in_each_queue_that_wants_it(shop: Shop) -> None:
    with shop.session() as session, session.begin():
        cheap = shop.topic.publish(session, order_id=1, total=Decimal(5))
        dear = shop.topic.publish(session, order_id=2, total=Decimal("100.50"), note="soon")
    assert [type(message) for message in cheap] == [shop.bills]
    assert [type(message) for message in dear] == [shop.bills, shop.mails]
    assert shop.orders(shop.bills) == [1, 2]
    with shop.session() as session:
        [mail] = session.scalars(select(shop.mails))
        assert (mail.order_id, mail.total, mail.note) == (2, Decimal("100.50"), "soon")


def test_its_messages_share_the_fate_of_the_transaction(shop: Shop) -> None:
    with shop.session() as session:
        shop.topic.publish(session, order_id=1, total=500)
        session.rollback()
        with session.begin_nested() as savepoint:
            shop.topic.publish(session, order_id=2, total=500)
            session.flush()
            savepoint.rollback()
        shop.topic.publish(session, order_id=3, total=500)
        session.commit()
    assert shop.orders(shop.bills) == shop.orders(shop.mails) == [3]


def test_subscribers_receive_it(shop: Shop, subscribe: Callable[..., Any]) -> None:
    bills, mails = subscribe(shop.bills), subscribe(shop.mails)
    with shop.session() as session, session.begin():
        shop.topic.publish(session, order_id=1, total=500)
    assert bills.get(timeout=30).order_id == 1
    assert mails.get(timeout=30).order_id == 1


def test_many_events_are_one_insert_for_each_queue(shop: Shop) -> None:
    inserts: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        inserts.append(statement.split(maxsplit=1)[0])

    event.listen(shop.engine, "before_cursor_execute", note)
    events = [shop.topic(order_id=number, total=number) for number in range(300)]
    with shop.session() as session, session.begin():
        messages = shop.topic.publish_all(session, iter(events))
    assert len(messages) == 300 + 199
    assert inserts.count("INSERT") == 2
    assert shop.orders(shop.bills) == list(range(300))


def test_messages_are_scheduled_and_prioritised(shop: Shop) -> None:
    with shop.session() as session, session.begin():
        [later] = shop.topic.publish(session, order_id=1, total=1, deliver_in=60, priority=3)
        assert timedelta(seconds=50) < later.deliver_in <= timedelta(seconds=60)
        assert later.priority == 3
        at = later.deliver_at
        [again] = shop.topic.publish_all(
            session, [shop.topic(order_id=2, total=1)], deliver_at=at, priority=-5
        )
        assert (again.deliver_at, again.priority) == (at, -5)
        with pytest.raises(InvalidArgument, match="give one of the two"):
            shop.topic.publish(session, order_id=1, total=1, deliver_in=1, deliver_at=at)


def test_unknown_and_missing_values_are_refused(shop: Shop) -> None:
    with shop.session() as session:
        with pytest.raises(InvalidArgumentType, match="has no totl; its values are order_id, tot"):
            shop.topic.publish(session, order_id=1, totl=1)
        with pytest.raises(InvalidArgumentType, match="order_id, total missing"):
            shop.topic.publish(session)
        assert not session.new
    placed = shop.topic(order_id=1, total=2)
    assert (placed.order_id, placed.total, placed.note) == (1, 2, None)


def test_hooks_may_return_events(shop: Shop) -> None:
    source = shop.make_queue()

    @emits(source, "insert")
    def placed(message: Any) -> Any:
        return [
            shop.topic(order_id=int(message.body), total=500),
            shop.bills(order_id=10, total=1),
        ]

    with shop.session() as session, session.begin():
        session.add(source(body="1"))
        on_commit(session, lambda: shop.topic(order_id=2, total=500))
        on_commit(session, lambda: (shop.topic(order_id=n, total=500) for n in (3, 4)))
    assert shop.orders(shop.bills) == [1, 2, 3, 4, 10]
    assert shop.orders(shop.mails) == [1, 2, 3, 4]


def test_an_async_session_publishes(shop: Shop, backend: Backend) -> None:
    driver = {None: "aiosqlite"}.get(backend.server, "asyncmy")

    async def main() -> None:
        engine = create_async_engine(async_url(shop.engine.url, driver))
        async with AsyncSession(engine) as session, session.begin():
            shop.topic.publish(session, order_id=1, total=500)
            await session.run_sync(lambda sync: shop.topic.publish(sync, order_id=2, total=500))
            on_commit(session, lambda: shop.topic(order_id=3, total=500))
        async with AsyncSession(engine) as session:
            shop.topic.publish(session, order_id=4, total=500)
        await engine.dispose()

    asyncio.run(main())
    assert shop.orders(shop.bills) == shop.orders(shop.mails) == [1, 2, 3]


def test_a_scoped_session_publishes(shop: Shop) -> None:
    registry = scoped_session(sessionmaker(shop.engine))
    shop.topic.publish(registry, order_id=1, total=1)
    registry.commit()
    registry.remove()
    assert shop.orders(shop.bills) == [1]


def test_events_also_go_to_the_queues_of_the_topics_inherited_from(shop: Shop) -> None:
    class OrderPaid(shop.topic):
        account: Mapped[str] = mapped_column(String(20))

    books = shop.queue(OrderPaid)
    with shop.session() as session, session.begin():
        shop.topic.publish(session, order_id=1, total=1)
        OrderPaid.publish(session, order_id=2, total=1, account="cash")
        shop.topic.publish_all(session, [OrderPaid(order_id=3, total=1, account="cash")])
    assert shop.orders(shop.bills) == [1, 2, 3]
    assert shop.orders(books) == [2, 3]
    assert OrderPaid.queues() == [books, shop.bills, shop.mails]
    assert shop.topic.queues() == [shop.bills, shop.mails]
    with shop.session() as session, pytest.raises(InvalidArgumentType, match="no event of OrderPa"):
        OrderPaid.publish_all(session, [shop.topic(order_id=4, total=1)])


def test_queues_on_another_engine_are_refused_with_the_reason(shop: Shop, tmp_path: Any) -> None:
    other = create_engine(f"sqlite:///{tmp_path}/other.db")
    binds = {shop.mails: other}
    with shop.session(binds=binds) as session:
        shop.topic.publish(session, order_id=1, total=1)  # Not for the other one.
        with pytest.raises(InvalidArgument, match=r"other\.db.* can't commit with the data"):
            shop.topic.publish(session, order_id=2, total=500)
        session.rollback()
    with (
        Session(binds={shop.bills: shop.engine, **binds}) as session,
        pytest.raises(InvalidArgument, match="can't commit with the data"),
    ):
        shop.topic.publish(session, order_id=2, total=500)
    with (
        Session(binds=binds) as session,
        pytest.raises(InvalidArgument, match="no engine for this queue"),
    ):
        shop.topic.publish(session, order_id=2, total=500)
    other.dispose()
    assert shop.orders(shop.bills) == []


def test_a_default_that_the_insert_fills_in_is_left_to_each_queue(shop: Shop) -> None:
    class Numbered(Topic):
        code: Mapped[int] = mapped_column(BigInteger, default=random_id)
        kind: Mapped[str] = mapped_column(String(20), default="plain")

    first, second = shop.queue(Numbered), shop.queue(Numbered)
    placed: Any = Numbered()
    assert (placed.code, placed.kind) == (None, "plain")
    with shop.session(expire_on_commit=False) as session, session.begin():
        messages = Numbered.publish_all(session, [placed, Numbered(code=5, kind="other")])
    assert [type(message) for message in messages] == [first, second, first, second]
    codes = [message.code for message in messages]
    assert codes[2:] == [5, 5]
    assert len({*codes, None}) == 4
    assert [message.kind for message in messages] == ["plain", "plain", "other", "other"]


def stock_queues(shop: Shop, backend: Backend) -> tuple[Any, Any, Any]:
    """Return a topic, a queue of it with one message for each product, and one with all."""

    class StockChanged(Topic):
        product: Mapped[int] = mapped_column(BigInteger)
        stock: Mapped[int] = mapped_column(BigInteger)

    # The key has to contain the column that determines the shard.
    sharded = {"shard_by": "product", "vindex": "hash"} if backend.server == "sharded" else {}
    unique = shop.queue(StockChanged, options={"unique_by": "product", **sharded})
    plain = shop.queue(StockChanged)
    return StockChanged, unique, plain


def test_unique_queues_skip_or_replace_what_exists(shop: Shop, backend: Backend) -> None:
    StockChanged, unique, plain = stock_queues(shop, backend)  # noqa: N806

    def stocks(queue: Any) -> list[int]:
        with shop.session() as session:
            return sorted(session.scalars(select(queue.stock)))

    for stock, if_exists in ((1, "raise"), (2, "skip"), (3, "replace")):
        with shop.session() as session, session.begin():
            StockChanged.publish(session, product=1, stock=stock, if_exists=if_exists)
        assert stocks(unique) == [3 if if_exists == "replace" else 1]
    assert stocks(plain) == [1, 2, 3]
    driver = {None: "aiosqlite"}.get(backend.server, "asyncmy")

    async def main() -> None:
        engine = create_async_engine(async_url(shop.engine.url, driver))
        async with AsyncSession(engine) as session, session.begin():
            with pytest.raises(InvalidArgument, match="inside of a function for run_sync"):
                StockChanged.publish(session, product=1, stock=9, if_exists="replace")
            await session.run_sync(
                lambda sync: StockChanged.publish(sync, product=1, stock=4, if_exists="replace")
            )
        await engine.dispose()

    asyncio.run(main())
    assert stocks(unique) == [4]
    with shop.session() as session, pytest.raises(InvalidArgument, match="if_exists='never'"):
        StockChanged.publish(session, product=1, stock=1, if_exists="never")  # type: ignore[arg-type]


def test_hooks_return_events_for_unique_and_other_queues(shop: Shop, backend: Backend) -> None:
    StockChanged, unique, plain = stock_queues(shop, backend)  # noqa: N806
    source = shop.make_queue()

    @emits(source, "insert", if_exists="replace")
    def changed(message: Any) -> Any:
        return StockChanged(product=1, stock=int(message.body))

    with shop.session() as session, session.begin():
        session.add(source(body="1"))
        session.flush()
        session.add(source(body="2"))
        on_commit(session, lambda: StockChanged(product=1, stock=3), if_exists="skip")
    with shop.session() as session:
        assert session.scalars(select(unique.stock)).all() == [2]
        assert sorted(session.scalars(select(plain.stock))) == [1, 2, 3]


class TestWithoutDatabase:
    """What needs no queue in a database."""

    def test_a_topic_without_queues_warns_once_and_names_itself(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class NobodyListens(Topic):
            number: Mapped[int]

        with Session() as session, caplog.at_level(logging.WARNING):
            assert NobodyListens.publish(session, number=1) == []
            assert NobodyListens.publish(session, number=2) == []
        [record] = caplog.records
        assert "NobodyListens has no queues" in record.getMessage()

    def test_publishing_to_a_queue_or_to_no_topic_is_refused(self) -> None:
        class Base(DeclarativeBase):
            pass

        class Happened(Topic):
            number: Mapped[int]

        class Queue(Happened, MessageQueueMixin, Base):
            __tablename__ = "queue"

        with Session() as session:
            with pytest.raises(InvalidArgument, match="is one of the queues of Happened"):
                Queue.publish(session, number=1)
            with pytest.raises(InvalidArgument, match="publish to a subclass"):
                Topic.publish(session)
            with pytest.raises(InvalidArgumentType, match="is no event of Happened"):
                Happened.publish_all(session, [Queue(number=1)])
            with pytest.raises(InvalidArgumentType, match="is no event of Happened"):
                Happened.publish_all(session, [5])  # type: ignore[list-item]
        with pytest.raises(InvalidArgumentType, match="session='no'"):
            Happened.publish("no", number=1)  # type: ignore[arg-type]

    def test_a_dataclass_may_be_a_topic(self) -> None:
        class Base(MappedAsDataclass, DeclarativeBase):
            pass

        class Joined(MappedAsDataclass, Topic):
            user_id: Mapped[int]
            name: Mapped[str | None] = mapped_column(String(20), default=None)

        class Greet(Joined, MessageQueueMixin, Base):
            __tablename__ = "greet"

        assert Joined(1) == Joined(user_id=1, name=None)
        engine = create_engine("sqlite://")
        Base.metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            [message] = Joined.publish(session, user_id=1)
            Joined.publish_all(session, [Joined(2, name="b")], deliver_in=5)
            assert isinstance(message, Greet)
            assert session.scalars(select(Greet.name).order_by(Greet.user_id)).all() == [None, "b"]
        with pytest.raises(TypeError, match="user_id"), Session(engine) as session:
            Joined.publish(session, name="c")

    def test_which_values_are_optional(self) -> None:
        class Declared(Topic):
            plain: Mapped[int]
            union: Mapped[int | None]
            optional: Mapped[Optional[int]]  # noqa: UP045
            quoted: Mapped["int | None"]  # noqa: UP037
            unresolved: Mapped[Unknown | None]  # type: ignore[name-defined]  # noqa: F821
            nullable: Mapped[int] = mapped_column(nullable=True)
            not_null: Mapped[int | None] = mapped_column(nullable=False)
            constant: Mapped[Seven]
            function: Mapped[int] = mapped_column(default=random_id)
            expression: Mapped[int] = mapped_column(default=func.random())
            server: Mapped[int] = mapped_column(server_default="1")
            bare = mapped_column(String(20))
            other: int  # Not mapped.

            @declared_attr
            def made(cls) -> Mapped[int]:
                return mapped_column()

        with pytest.raises(InvalidArgumentType, match="Declared: plain, not_null, bare missing"):
            Declared()
        event: Any = Declared(plain=1, not_null=2, bare=3)
        assert (event.constant, event.function, event.union, event.made) == (7, None, None, None)
        assert not hasattr(event, "other")

    def test_abstract_queues_pass_events_on_to_those_that_inherit(self) -> None:
        class Base(DeclarativeBase):
            pass

        class Happened(Topic):
            number: Mapped[int]

        class Shared(Happened, MessageQueueMixin, Base):
            __abstract__ = True
            __queue__ = QueueOptions(ack_wait=5)

        class First(Shared):
            __tablename__ = "first"

        class Archive(Happened, Base):  # A model that is no queue.
            __tablename__ = "archive"
            id: Mapped[int] = mapped_column(primary_key=True)

        assert Happened.queues() == [First]
        assert Archive(id=1, number=2).number == 2

    def test_queues_that_are_gone_get_no_events(self) -> None:
        class Happened(Topic):
            number: Mapped[int]

        def define() -> None:
            class Base(DeclarativeBase):
                pass

            class Queue(Happened, MessageQueueMixin, Base):
                __tablename__ = "queue"

            assert Happened.queues() == [Queue]
            Base.registry.dispose()

        define()
        assert Happened.queues() == []
        gc.collect()
        assert Happened.__subclasses__() == []


@pytest.mark.parametrize(
    "backend", PULLING, indirect=True, ids=lambda backend: backend.name
)  # A stream has no order.
def test_ordered_queues_hand_events_of_a_key_out_as_they_were_published(
    shop: Shop, subscribe: Callable[..., Any], backend: Backend
) -> None:
    # In a sharded keyspace, what is in order is in one shard.
    options = {"shard_by": "order_id", "vindex": "hash"} if backend.server == "sharded" else {}
    parcels = shop.queue(shop.topic, options={"ordered_by": "order_id", **options})
    notes = [f"{number}" for number in range(5)]
    with shop.session() as session, session.begin():
        shop.topic.publish_all(
            session, [shop.topic(order_id=1, total=1, note=note) for note in notes]
        )
    subscriber = subscribe(parcels)
    received = []
    for _ in notes:
        message = subscriber.get(20)
        assert subscriber.get(0.1) is None
        received.append(message.note)
        subscriber.ack(message).result(20)
    assert received == notes
