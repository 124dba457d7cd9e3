"""Random histories of an ordered queue, compared step by step with a model in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from sqlalchemy import BigInteger, Engine, delete, insert, select
from sqlalchemy.orm import Session, mapped_column

from sqla_vitess_messages import AlreadySettled, LeaseLost
from sqla_vitess_messages.rows.lease import lease_of
from sqla_vitess_messages.rows.states import DEAD
from sqla_vitess_messages.transports.ordered import OrderedLeaser
from tests.backends import BACKENDS
from tests.state_machines import HOUR, Clock, run_machine

MakeQueue = Callable[..., type[Any]]

SERVERS = [backend for backend in BACKENDS if backend.name in ("sqlite", "mysql", "mariadb")]
keys = st.integers(1, 3)
committed = st.booleans()


@dataclass
class Row:
    """The expected state of a message."""

    id: int
    key: int
    time_next: int
    epoch: int = 0
    acked: bool = False

    @property
    def dead(self) -> bool:
        return self.time_next == DEAD


@dataclass
class Held:
    """A received message, as its holder sees it."""

    message: Any
    fence: int


class OrderedQueue(RuleBasedStateMachine):
    """Producers, of which some roll back, and two receivers. Receivers are lost when time goes by.

    The model is a list of rows in the order in which they were enqueued.
    """

    held = Bundle("held")

    def __init__(self, moved: Clock, engine: Engine, model: type[Any], leasers: list[Any]) -> None:
        super().__init__()
        self.clock, self.engine, self.model, self.leasers = moved, engine, model, leasers
        self.halts: bool = model.__queue__.halt_on_dead
        self.rows: list[Row] = []

    def teardown(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(self.model.__table__))

    def heads(self) -> dict[int, Row]:
        """Return the first message of each key that keeps the others waiting."""
        found: dict[int, Row] = {}
        for row in self.rows:
            if not row.acked and (self.halts or not row.dead):
                found.setdefault(row.key, row)
        return found

    @initialize()
    def begin(self) -> None:
        self.enqueue([1, 2, 1, 2, 1], [0, 0, 0, 0, 0], how="orm", commit=True)

    @rule(
        some=st.lists(keys, min_size=1, max_size=4),
        delays=st.lists(st.sampled_from([0, 0, 0, 5, HOUR]), min_size=4, max_size=4),
        how=st.sampled_from(["orm", "reversed", "core", "flush each"]),
        commit=committed,
    )
    def enqueue(self, some: list[int], delays: list[int], how: str, commit: bool) -> None:
        """Add messages in one transaction, made or flushed in several ways."""
        due = [self.clock.now + delay * 10**9 for delay in delays]
        rows: list[Row] = []
        with Session(self.engine) as session:
            if how == "core":
                ids = [self.clock.now + 10 * len(self.rows) + n for n in range(len(some))]
                values = [
                    {"tenant": key, "id": id_, "time_next": at, "time_scheduled": at}
                    for key, id_, at in zip(some, ids, due, strict=False)
                ]
                session.execute(insert(self.model), values)
                rows = [Row(value["id"], value["tenant"], value["time_next"]) for value in values]
            else:
                made = [
                    self.model(tenant=key, deliver_in=delay, priority=100 - n)
                    for n, (key, delay) in enumerate(zip(some, delays, strict=False))
                ]
                if how == "reversed":
                    made.reverse()
                for message in made:
                    session.add(message)
                    if how == "flush each":
                        session.flush()
                session.flush()
                rows = [Row(one.id, one.tenant, one.time_next) for one in made]
            if commit:
                session.commit()
                self.rows += rows

    @rule(step=st.sampled_from([0.001, 1, 6, 70, HOUR]))
    def move_clock(self, step: float) -> None:
        self.clock.now += int(step * 10**9)

    @rule(target=held, who=st.integers(0, 1), limit=st.integers(1, 4))
    def receive(self, who: int, limit: int) -> Any:
        due = {row.id for row in self.heads().values() if row.time_next <= self.clock.now}
        leaser = self.leasers[who]
        if due:
            assert leaser.seconds_until_due() == 0
        messages = leaser.lease(limit).messages
        if len(messages) < limit:  # Those that follow settled ones come without the others.
            messages += leaser.lease(limit - len(messages)).messages
        got = [message.id for message in messages]
        assert len(got) == len(set(got)) == min(limit, len(due))
        assert set(got) <= due
        return multiple(*(self.note(message) for message in messages))

    def note(self, message: Any) -> Held:
        row = self.row_of(message)
        assert message.epoch == row.epoch
        row.epoch += 1
        self.copy_time(row)
        return Held(message, row.epoch)

    def copy_time(self, row: Row) -> None:
        with self.engine.connect() as connection:
            columns = self.model.__table__.c
            found = connection.scalar(select(columns.time_next).where(columns.id == row.id))
        assert found is not None
        row.time_next = found

    def row_of(self, message: Any) -> Row:
        return next(row for row in self.rows if row.id == message.id)

    @rule(target=held, who=st.integers(0, 1))
    def receive_after_leases_expired(self, who: int) -> Any:
        """As when a receiver was killed, and another gets its messages."""
        self.move_clock(200)
        return self.receive(who, 4)

    @rule(held=held, commit=committed)
    def ack(self, held: Held, commit: bool) -> None:
        row = self.row_of(held.message)
        with Session(self.engine) as session:
            if row.acked:
                with pytest.raises(AlreadySettled):
                    held.message.ack(session)
                return
            held.message.ack(session)
            if commit:
                session.commit()
                row.acked = True
                self.leasers[0].note_settled([lease_of(held.message)])

    def holds(self, held: Held) -> bool:
        row = self.row_of(held.message)
        return (
            not row.acked
            and not row.dead
            and row.epoch == held.fence
            and row.time_next > self.clock.now
            and not lease_of(held.message).is_settled
        )

    @rule(held=held, commit=committed, delay=st.sampled_from([0, 5, HOUR]))
    def retry(self, held: Held, commit: bool, delay: float) -> None:
        with Session(self.engine) as session:
            if not self.holds(held):
                with pytest.raises(LeaseLost):
                    held.message.retry(session, delay)
                return
            held.message.retry(session, delay)
            if commit:
                session.commit()
                self.row_of(held.message).time_next = self.clock.now + int(delay * 10**9)

    @rule(held=held, commit=committed)
    def fail(self, held: Held, commit: bool) -> None:
        with Session(self.engine) as session:
            if not self.holds(held):
                with pytest.raises(LeaseLost):
                    held.message.fail(session)
                return
            held.message.fail(session)
            if commit:
                session.commit()
                self.row_of(held.message).time_next = DEAD

    @rule(held=held, who=st.integers(0, 1))
    def release(self, held: Held, who: int) -> None:
        self.leasers[who].release([held.message])
        row = self.row_of(held.message)
        if not row.acked and not row.dead and row.epoch == held.fence:
            row.time_next = self.clock.now
            row.epoch += 2**16 - 1

    @rule(commit=committed)
    def requeue(self, commit: bool) -> None:
        dead = [row for row in self.rows if row.dead and not row.acked]
        with Session(self.engine) as session:
            assert self.model.requeue(session) == len(dead)
            if not commit:
                return
            session.commit()
        for row in dead:
            row.time_next = self.clock.now
            row.epoch = (row.epoch // 2**16 + 1) * 2**16
        if not self.halts:  # The others went on: these come last.
            self.rows = [row for row in self.rows if row not in dead] + dead

    @rule()
    def purge_dead(self) -> None:
        dead = [row for row in self.rows if row.dead and not row.acked]
        with Session(self.engine) as session, session.begin():
            for row in dead:
                row.acked = True
                session.execute(
                    delete(self.model)
                    .where(self.model.id == row.id)
                    .execution_options(synchronize_session=False)
                )

    @invariant()
    def at_most_one_message_of_a_key_is_handed_out(self) -> None:
        columns = self.model.__table__.c
        leased = select(columns.tenant).where(
            columns.time_acked.is_(None),
            columns.epoch % 2**16 > 0,
            columns.time_next > self.clock.now,
            columns.time_next < DEAD,
        )
        with self.engine.connect() as connection:
            found = connection.scalars(leased).all()
        assert len(found) == len(set(found))

    @invariant()
    def the_table_is_in_the_order_of_the_model(self) -> None:
        columns = self.model.__table__.c
        unsettled = select(columns.id).where(columns.time_acked.is_(None))
        with self.engine.connect() as connection:
            found = connection.scalars(unsettled.order_by(columns.seq)).all()
        assert found == [row.id for row in self.rows if not row.acked]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("halt_on_dead", [False, True], ids=["goes-on", "halts"])
@pytest.mark.parametrize("backend", SERVERS, indirect=True, ids=lambda backend: backend.name)
def test_any_history_of_an_ordered_queue_agrees_with_the_model(
    engine: Engine,
    make_queue: MakeQueue,
    moved: Clock,
    receivers: list[Engine],
    halt_on_dead: bool,
) -> None:
    model = make_queue(
        attributes={"tenant": mapped_column(BigInteger, nullable=False)},
        ordered_by="tenant",
        halt_on_dead=halt_on_dead,
        ack_wait=5,
        min_backoff=1,
        max_backoff=60,
    )

    def leasers() -> list[Any]:
        return [OrderedLeaser(model, one) for one in receivers]

    run_machine(lambda: OrderedQueue(moved, engine, model, leasers()), max_examples=30)
