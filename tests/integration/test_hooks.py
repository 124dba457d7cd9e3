"""Messages that a session enqueues itself: at its commit, and for the changes that it flushes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    ForeignKey,
    String,
    create_engine,
    delete,
    insert,
    inspect,
    select,
    update,
)  # fmt: skip
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)  # fmt: skip

from sqla_vitess_messages import (
    InvalidArgument,
    InvalidArgumentType,
    emits,
    hooks,
    on_commit,
    random_id,
    without_emits,
)
from tests.backends import BACKENDS

pytestmark = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in ("sqlite", "mysql", "vitess")],
    indirect=True,
    ids=lambda backend: backend.name,
)


class Shop:
    """A queue, and models whose changes are emitted."""

    def __init__(self, engine: Engine, make_queue: Callable[..., type[Any]]) -> None:
        class Base(DeclarativeBase):
            pass

        self.base = Base
        self.queue = make_queue(Base)
        suffix = self.queue.__tablename__

        class User(Base):
            __tablename__ = f"user_{suffix}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
            kind: Mapped[str] = mapped_column(String(20))
            name: Mapped[str] = mapped_column(String(50), unique=True, active_history=True)
            orders: Mapped[list[Any]] = relationship("Order", cascade="all, delete-orphan")
            __mapper_args__: ClassVar[Any] = {
                "polymorphic_on": "kind",
                "polymorphic_identity": "user",
            }

        class Admin(User):
            __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "admin"}

        class Order(Base):
            __tablename__ = f"order_{suffix}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, default=random_id)
            user_id: Mapped[int | None] = mapped_column(ForeignKey(f"user_{suffix}.id"))

        self.User, self.Admin, self.Order = User, Admin, Order
        self.engine = engine
        Base.metadata.create_all(engine)

    def session(self, **options: Any) -> Session:
        return Session(self.engine, **options)

    def bodies(self) -> list[str]:
        with self.session() as session:
            return sorted(session.scalars(select(self.queue.body)))


@pytest.fixture
def shop(engine: Engine, make_queue: Callable[..., type[Any]]) -> Iterator[Shop]:
    yield Shop(engine, make_queue)
    hooks._emitters.clear()


def test_on_commit_enqueues_with_the_transaction(shop: Shop) -> None:
    with shop.session(expire_on_commit=False) as session, session.begin():
        user = shop.User(name="ada")
        session.add(user)
        # Called at the commit, when the generated key is set.
        on_commit(session, lambda: shop.queue(body=f"welcome {user.id}"))
        assert session.scalars(select(shop.queue)).all() == []
    assert shop.bodies() == [f"welcome {user.id}"]


def test_on_commit_is_called_once_for_its_transaction_only(shop: Shop) -> None:
    with shop.session() as session:
        on_commit(session, lambda: shop.queue(body="first"))
        session.flush()
        session.commit()
        session.add(shop.User(name="ada"))
        session.commit()
    assert shop.bodies() == ["first"]


def test_factories_may_return_none_or_several_and_add_others(shop: Shop) -> None:
    with shop.session() as session:

        def another() -> None:
            on_commit(session, lambda: (shop.queue(body=name) for name in "cd"))

        on_commit(session, lambda: None)
        on_commit(session, lambda: [shop.queue(body=name) for name in "ab"])
        on_commit(session, another)
        session.commit()
    assert shop.bodies() == ["a", "b", "c", "d"]


def test_factories_that_never_end_are_refused(shop: Shop) -> None:
    with shop.session() as session:

        def again() -> None:
            on_commit(session, again)

        on_commit(session, again)
        with pytest.raises(InvalidArgument, match="100 rounds"):
            session.commit()


def test_a_rollback_discards_factories(shop: Shop) -> None:
    with shop.session() as session:
        on_commit(session, lambda: shop.queue(body="never"))
        session.rollback()
        session.add(shop.User(name="ada"))
        session.commit()
    with shop.session() as session:
        on_commit(session, lambda: shop.queue(body="never"))
        session.close()
        session.add(shop.User(name="bob"))
        session.commit()
    assert shop.bodies() == []


def test_a_rolled_back_savepoint_discards_its_own_factories(shop: Shop) -> None:
    with shop.session() as session:
        on_commit(session, lambda: shop.queue(body="outer"))
        savepoint = session.begin_nested()
        on_commit(session, lambda: shop.queue(body="rolled back"))
        with session.begin_nested():
            on_commit(session, lambda: shop.queue(body="inside what is rolled back"))
        savepoint.rollback()
        with session.begin_nested():
            on_commit(session, lambda: shop.queue(body="released"))
        assert shop.queue not in {type(new) for new in session.new}
        session.commit()
    assert shop.bodies() == ["outer", "released"]


def test_an_error_of_a_factory_keeps_the_transaction_from_committing(shop: Shop) -> None:
    def broken() -> None:
        raise LookupError("no address")

    with shop.session() as session:
        session.add(shop.User(name="ada"))
        on_commit(session, broken)
        with pytest.raises(LookupError):
            session.commit()
    with shop.session() as session:
        assert session.scalars(select(shop.User)).all() == []


def test_the_next_commit_calls_a_factory_that_failed(shop: Shop) -> None:
    failures = [LookupError("no address")]

    def broken_once() -> Any:
        if failures:
            raise failures.pop()
        return shop.queue(body="b")

    with shop.session() as session:
        on_commit(session, lambda: shop.queue(body="a"))
        on_commit(session, broken_once)
        on_commit(session, lambda: shop.queue(body="c"))
        with pytest.raises(LookupError):
            session.commit()
        session.commit()
        session.commit()
    assert shop.bodies() == ["a", "b", "c"]


def test_two_sessions_keep_their_factories_apart(shop: Shop) -> None:
    with shop.session() as one, shop.session() as other:
        on_commit(one, lambda: shop.queue(body="one"))
        on_commit(other, lambda: shop.queue(body="other"))
        other.rollback()
        one.commit()
    assert shop.bodies() == ["one"]


def test_a_scoped_session_is_accepted(shop: Shop) -> None:
    registry = scoped_session(sessionmaker(shop.engine, twophase=False))
    on_commit(registry, lambda: shop.queue(body="scoped"))
    registry.commit()
    registry.remove()
    assert shop.bodies() == ["scoped"]


@pytest.mark.parametrize("returned", ["text", 5, ["text"]])
def test_a_hook_has_to_return_messages(shop: Shop, returned: Any) -> None:
    with shop.session() as session:
        on_commit(session, lambda: returned)
        with pytest.raises(InvalidArgumentType, match="expected a message"):
            session.commit()


def test_wrong_arguments_are_refused(shop: Shop) -> None:
    with pytest.raises(InvalidArgumentType, match="session='no'"):
        on_commit("no", lambda: None)  # type: ignore[arg-type]
    with shop.session() as session, pytest.raises(InvalidArgumentType, match="factory=5"):
        on_commit(session, 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentType, match="model='User'"):
        emits("User", "insert")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"changes=\['upsert'\]"):
        emits(shop.User, "upsert")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"changes=\(\)"):
        emits(shop.User)
    with pytest.raises(InvalidArgumentType, match="when=5"):
        emits(shop.User, "insert", when=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentType, match="decorates a function"):
        emits(shop.User, "insert")(5)  # type: ignore[type-var]


def test_emits_sees_keys_and_the_old_and_new_values(shop: Shop) -> None:
    @emits(shop.User, "insert", "update", "delete")
    def announce(user: Any) -> Any:
        old = inspect(user).attrs.name.history.deleted
        return shop.queue(body=f"{user.name} {user.id is not None} {list(old or ())}")

    with shop.session() as session:
        user = shop.User(name="ada")
        session.add(user)
        session.commit()
        user.name = "bea"
        session.flush()
        user.name = "cleo"
        session.commit()
        session.delete(user)
        session.commit()
    assert shop.bodies() == [
        "ada True []",
        "bea True ['ada']",
        "cleo True ['bea']",
        "cleo True []",
    ]


def test_emits_is_not_called_for_what_does_not_change(shop: Shop) -> None:
    @emits(shop.User, "update")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    with shop.session() as session:
        user = shop.User(name="ada")
        session.add(user)
        session.commit()
        user.name = "ada"
        user.orders.append(shop.Order())  # A change of another row.
        session.commit()
    assert shop.bodies() == []


def test_emits_sees_what_the_same_flush_writes_elsewhere(shop: Shop) -> None:
    @emits(shop.User, "insert")
    def announce(user: Any) -> Any:
        return [shop.queue(body=str(order.id)) for order in user.orders]

    with shop.session() as session:
        user = shop.User(name="ada", orders=[shop.Order(), shop.Order()])
        session.add(user)
        session.commit()
        assert shop.bodies() == sorted(str(order.id) for order in user.orders)


def test_emits_sees_orphans_and_cascades(shop: Shop) -> None:
    @emits(shop.Order, "delete")
    def announce(order: Any) -> Any:
        return shop.queue(body=str(order.id))

    with shop.session() as session:
        orders = [shop.Order(id=number) for number in (1, 2, 3)]
        user = shop.User(name="ada", orders=orders)
        session.add(user)
        session.commit()
        user.orders.remove(orders[0])
        session.commit()
        assert shop.bodies() == ["1"]
        session.delete(user)
        session.commit()
    assert shop.bodies() == ["1", "2", "3"]


def test_emits_evaluates_when(shop: Shop) -> None:
    @emits(shop.User, "insert", when=lambda user: user.name.startswith("b"))
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    with shop.session() as session, session.begin():
        session.add_all([shop.User(name=name) for name in ("ada", "bea")])
    assert shop.bodies() == ["bea"]


def test_emits_reaches_subclasses_bases_and_mixins(shop: Shop) -> None:
    class Audited:
        pass

    @emits(shop.base, "insert")
    def by_base(changed: Any) -> Any:
        return shop.queue(body=f"base {type(changed).__name__}")

    @emits(shop.User, "insert")
    def by_parent(user: Any) -> Any:
        return shop.queue(body=f"parent {user.kind}")

    @emits(Audited, "insert")
    def by_mixin(changed: Any) -> Any:
        return shop.queue(body=f"mixin {type(changed).__name__}")

    class Later(Audited, shop.User):
        __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "later"}

    with shop.session() as session, session.begin():
        session.add(shop.Admin(name="ada"))
        session.add(Later(name="bea"))
        session.add(shop.queue(body="no message about a message"))
    assert shop.bodies() == [
        "base Admin",
        "base Later",
        "mixin Later",
        "no message about a message",
        "parent admin",
        "parent later",
    ]


def test_emits_for_a_queue_enqueues_messages_about_messages(
    shop: Shop, make_queue: Callable[..., type[Any]]
) -> None:
    second = make_queue()

    @emits(shop.User, "insert")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    @emits(shop.queue, "insert")
    def follow_up(message: Any) -> Any:
        return second(body=f"after {message.body}")

    with shop.session() as session, session.begin():
        session.add(shop.User(name="ada"))
    with shop.session() as session:
        assert session.scalars(select(second.body)).all() == ["after ada"]


def test_emitted_messages_share_the_fate_of_their_change(shop: Shop) -> None:
    @emits(shop.User, "insert")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    with shop.session() as session:
        session.add(shop.User(name="flushed before the savepoint, by the savepoint"))
        savepoint = session.begin_nested()
        session.add(shop.User(name="in a savepoint that is rolled back"))
        session.flush()
        savepoint.rollback()
        with session.begin_nested():
            session.add(shop.User(name="in a savepoint that is released"))
        session.commit()
        session.add(shop.User(name="rolled back"))
        session.flush()
        session.rollback()
        session.commit()
    assert shop.bodies() == [
        "flushed before the savepoint, by the savepoint",
        "in a savepoint that is released",
    ]


def test_a_flush_that_fails_leaves_no_message_behind(shop: Shop) -> None:
    @emits(shop.User, "insert")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    with shop.session() as session:
        session.add(shop.User(name="ada"))
        session.commit()
        session.add_all([shop.User(name="bea"), shop.User(name="ada")])
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        session.add(shop.User(name="cleo"))
        session.commit()
    assert shop.bodies() == ["ada", "cleo"]


def test_an_error_of_an_emitter_makes_the_flush_fail(shop: Shop) -> None:
    @emits(shop.User, "insert")
    def announce(user: Any) -> Any:
        raise LookupError(user.name)

    with pytest.raises(LookupError), shop.session() as session, session.begin():
        session.add(shop.User(name="ada"))
    with shop.session() as session:
        assert session.scalars(select(shop.User)).all() == []


def test_statements_that_would_bypass_an_emitter_are_refused(shop: Shop) -> None:
    @emits(shop.User, "insert", "update", "delete")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    table = shop.User.__table__
    with shop.session() as session:
        for statement in (
            insert(shop.User),
            insert(table),
            update(shop.User).values(name="x"),
            update(shop.Admin).values(name="x"),
            update(table).values(name="x"),
            delete(shop.User),
            select(shop.User).from_statement(insert(shop.User).returning(shop.User)),
            select(shop.User).from_statement(delete(shop.User).returning(shop.User)),
        ):
            with pytest.raises(InvalidArgument, match=r"of user_\w+: .*without_emits"):
                session.execute(statement)
        with pytest.raises(InvalidArgument, match="delete of"):
            session.query(shop.User).delete()
        session.execute(update(shop.Order).values(user_id=1))
        session.execute(insert(shop.queue), [{"body": "no change of a user"}])
        session.commit()
    assert shop.bodies() == ["no change of a user"]


def test_without_emits_exempts_the_changes_of_its_block(shop: Shop) -> None:
    @emits(shop.User, "insert", "update")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    with shop.session() as session:
        session.add(shop.User(name="before"))
        with without_emits(session):
            session.add(shop.User(name="inside"))
            with without_emits(session):
                session.add(shop.User(name="inside of inside"))
            session.add(shop.User(name="inside after inside"))
            session.execute(insert(shop.User), [{"name": "by a statement", "kind": "user"}])
        session.add(shop.User(name="after"))
        session.commit()
        with pytest.raises(KeyError), without_emits(session):
            raise KeyError
        with pytest.raises(InvalidArgument):
            session.execute(update(shop.User).values(name="x"))
    assert shop.bodies() == ["after", "before"]


def test_queues_on_another_engine_are_refused(shop: Shop) -> None:
    other = create_engine(shop.engine.url)
    binds = {shop.base: shop.engine, shop.queue: other}

    @emits(shop.User, "insert")
    def announce(user: Any) -> Any:
        return shop.queue(body=user.name)

    with shop.session(binds={shop.queue: other}) as session:
        on_commit(session, lambda: shop.queue(body="elsewhere"))
        with pytest.raises(InvalidArgument, match="can't commit with the data"):
            session.commit()
    with Session(binds=binds) as session:
        session.add(shop.Order())
        on_commit(session, lambda: shop.queue(body="elsewhere"))
        with pytest.raises(InvalidArgument, match="can't commit with the data"):
            session.commit()
    with Session(binds=binds) as session:  # With a transaction that began before.
        session.add(shop.Order())
        session.flush()
        on_commit(session, lambda: shop.queue(body="elsewhere"))
        with pytest.raises(InvalidArgument, match="can't commit with the data"):
            session.commit()
        session.rollback()
        on_commit(session, lambda: shop.queue(body="alone"))
        session.commit()  # This transaction has no other data.
    with Session(binds=binds) as session:
        session.add(shop.User(name="ada"))
        with pytest.raises(InvalidArgument, match="can't commit with the data"):
            session.commit()
    with Session(binds={shop.User: shop.engine}) as session:
        session.add(shop.User(name="ada"))
        with pytest.raises(InvalidArgument, match="no engine for this queue"):
            session.commit()
    with Session(binds={shop.base: shop.engine}) as session:
        session.add(shop.User(name="ada"))
        on_commit(session, lambda: shop.queue(body="same"))
        session.commit()
    other.dispose()
    assert shop.bodies() == ["ada", "alone", "same"]
