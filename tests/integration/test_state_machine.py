"""Random histories of a queue, compared step by step with a model in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex
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
from sqlalchemy import BigInteger, Column, Engine, Table, delete, insert, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_vitess_messages import AlreadySettled, LeaseLost
from sqla_vitess_messages.failures import MessageFailuresMixin
from sqla_vitess_messages.rows.backoff import longest_backoff
from sqla_vitess_messages.rows.epochs import GENERATION
from sqla_vitess_messages.rows.states import DEAD
from sqla_vitess_messages.table.options import queue_options
from sqla_vitess_messages.transports.leaser import ShardLeaser
from sqla_vitess_messages.transports.purge import Purger
from tests.backends import BACKENDS
from tests.state_machines import HOUR, Clock, run_machine

MakeQueue = Callable[..., type[Any]]

SERVERS = [backend for backend in BACKENDS if backend.name in ("sqlite", "mysql")]
seconds = st.sampled_from([0, 0.5, 1, 5, 30, HOUR])
committed = st.booleans()


@dataclass
class Row:
    """The expected state of a row."""

    priority: int
    time_next: int
    epoch: int = 0
    acked: bool = False
    failed_epoch: int | None = None
    fences: set[int] = field(default_factory=set)

    @property
    def dead(self) -> bool:
        return self.time_next == DEAD

    @property
    def attempts(self) -> int:
        return self.epoch % GENERATION

    def state(self, now: int) -> str:
        if self.acked or self.dead:
            return "acked" if self.acked else "dead"
        if self.time_next <= now:
            return "ready"
        if self.attempts == 0:
            return "scheduled"
        return "retrying" if self.failed_epoch == self.epoch else "leased"


@dataclass
class Held:
    """A received message, as its holder sees it.

    :param fence: the epoch of its row, which no other lease of this message has.
    """

    message: Any
    fence: int
    settled: bool = False


class Queue(RuleBasedStateMachine):
    """Two receivers, a clock that jumps, and transactions that roll back."""

    held = Bundle("held")

    def __init__(
        self, clock: Clock, engine: Engine, model: type[Any], effects: Table, leasers: list[Any]
    ) -> None:
        super().__init__()
        self.clock, self.engine, self.model, self.effects = clock, engine, model, effects
        self.leasers = leasers
        self.purger = Purger(model.__table__, engine)
        self.options = queue_options(model.__table__)
        self.rows: dict[int, Row] = {}
        self.done: list[int] = []

    def teardown(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(self.model.__table__))
            connection.execute(delete(self.effects))

    @initialize()
    def begin(self) -> None:
        for priority in (1, 50, 50):
            self.enqueue(priority, 0, commit=True)
        self.move_clock(1)

    @rule(priority=st.sampled_from([1, 50, 51]), delay=seconds, commit=committed)
    def enqueue(self, priority: int, delay: float, commit: bool) -> None:
        with Session(self.engine) as session:
            message = self.model(priority=priority, deliver_in=delay)
            session.add(message)
            session.flush()
            if commit:
                self.rows[message.id] = Row(priority, message.time_next)
                session.commit()

    @rule(step=st.sampled_from([0.001, 1, 6, 70, HOUR, -1, -HOUR]))
    def move_clock(self, step: float) -> None:
        self.clock.now += int(step * 10**9)

    @rule(target=held, who=st.integers(0, 1), limit=st.integers(1, 5))
    def receive(self, who: int, limit: int) -> Any:
        leaser = self.leasers[who]
        leaser._due._priorities_until = 0.0
        due = [r for r in self.rows.values() if not r.acked and r.time_next < self.clock.now]
        expected = sorted((row.priority, row.time_next) for row in due)[:limit]
        messages = leaser.lease(limit).messages
        got = [self.rows[message.id] for message in messages]
        assert [(row.priority, row.time_next) for row in got] == expected
        for message, row in zip(messages, got, strict=True):
            assert message.epoch == row.epoch
            row.epoch += 1
            self.copy_time(message, row, self.options.ack_wait)
            assert row.epoch not in row.fences
            row.fences.add(row.epoch)
        return multiple(*(Held(message, message.epoch + 1) for message in messages))

    @rule(target=held, who=st.integers(0, 1))
    def receive_after_leases_expired(self, who: int) -> Any:
        """As when a receiver hangs or crashes, and another gets its messages."""
        self.move_clock(70)
        return self.receive(who, 5)

    def copy_time(self, message: Any, row: Row, least: float) -> None:
        """Copy the time of the next delivery from the table, after a check: it has jitter."""
        with self.engine.connect() as connection:
            table = self.model.__table__
            found = connection.scalar(select(table.c.time_next).where(table.c.id == message.id))
        assert found is not None
        wait = (found - self.clock.now) / 10**9
        assert least <= wait <= least + longest_backoff(row.attempts - 1, self.options)
        row.time_next = found

    @rule(held=held, commit=committed)
    def ack(self, held: Held, commit: bool) -> None:
        row = self.rows.get(held.message.id)
        with Session(self.engine) as session:
            session.execute(insert(self.effects).values(message_id=held.message.id))
            if row is None or row.acked:
                with pytest.raises(AlreadySettled):
                    held.message.ack(session)
                return
            held.message.ack(session)
            if commit:
                session.commit()
                row.acked = held.settled = True
                self.done.append(held.message.id)

    @rule(held=held, commit=committed)
    def fail(self, held: Held, commit: bool) -> None:
        def died(row: Row) -> None:
            row.time_next, row.failed_epoch = DEAD, row.epoch

        self.postpone(held, commit, held.message.fail, died, settles=True)

    @rule(held=held, commit=committed, delay=st.none() | seconds)
    def retry(self, held: Held, commit: bool, delay: float | None) -> None:
        def postponed(row: Row) -> None:
            row.failed_epoch = row.epoch
            if delay is None:
                self.copy_time(held.message, row, 0)
            else:
                row.time_next = self.clock.now + int(delay * 10**9)

        def call(session: Session) -> None:
            held.message.retry(session, delay)

        self.postpone(held, commit, call, postponed, settles=True)

    @rule(held=held, commit=committed)
    def extend(self, held: Held, commit: bool) -> None:
        def extended(row: Row) -> None:
            row.time_next = self.clock.now + 60 * 10**9

        def call(session: Session) -> None:
            held.message.extend(session, 60)

        self.postpone(held, commit, call, extended, settles=False)

    def postpone(
        self,
        held: Held,
        commit: bool,
        call: Callable[[Session], None],
        then: Callable[[Row], None],
        *,
        settles: bool,
    ) -> None:
        row = self.rows.get(held.message.id)
        holds = (
            row is not None
            and not held.settled
            and not row.acked
            and not row.dead
            and row.epoch == held.fence
            and row.time_next > self.clock.now
        )
        with Session(self.engine) as session:
            if not holds:
                with pytest.raises(LeaseLost):
                    call(session)
                return
            assert row is not None
            call(session)
            if not commit:
                return
            session.commit()
        held.settled = settles
        then(row)

    @rule(held=held, who=st.integers(0, 1))
    def release(self, held: Held, who: int) -> None:
        """As a subscriber does with what nobody got, perhaps again because the answer was lost."""
        self.leasers[who].release([held.message])
        row = self.rows.get(held.message.id)
        if row is not None and not row.acked and not row.dead and row.epoch == held.fence:
            row.time_next = self.clock.now
            row.epoch += GENERATION - 1

    @rule()
    def purge(self) -> None:
        while self.purger.purge():
            pass
        with self.engine.connect() as connection:
            left = set(connection.scalars(select(self.model.id)))
        gone = self.rows.keys() - left
        assert all(self.rows[id_].acked for id_ in gone)
        for id_ in gone:
            del self.rows[id_]

    @rule(commit=committed)
    def requeue(self, commit: bool) -> None:
        dead = [row for row in self.rows.values() if row.dead and not row.acked]
        with Session(self.engine) as session:
            assert self.model.requeue(session) == len(dead)
            if commit:
                session.commit()
                for row in dead:
                    row.time_next = self.clock.now
                    row.epoch = (row.epoch // GENERATION + 1) * GENERATION

    @rule(priority=st.sampled_from([1, 50]), delay=st.none() | seconds, commit=committed)
    def reschedule(self, priority: int, delay: float | None, commit: bool) -> None:
        now = self.clock.now
        movable = [
            row
            for row in self.rows.values()
            if row.priority == priority and row.state(now) in ("ready", "scheduled", "retrying")
        ]
        where = self.model.priority == priority
        with Session(self.engine) as session:
            if delay is None:
                assert self.model.run_now(session, where) == len(movable)
            else:
                changed = self.model.reschedule(session, where, deliver_in=delay)
                assert changed == len(movable)
            if commit:
                session.commit()
                for row in movable:
                    row.time_next = now + int((delay or 0) * 10**9)
                    row.epoch += GENERATION if row.attempts else 0
                    row.failed_epoch = row.epoch

    @rule(held=held, commit=committed)
    def cancel(self, held: Held, commit: bool) -> None:
        message_id = held.message.id
        row = self.rows.get(message_id)
        with Session(self.engine) as session:
            expected = int(row is not None and not row.acked)
            assert self.model.cancel(session, [message_id]) == expected
            if commit and expected:
                session.commit()
                del self.rows[message_id]

    @invariant()
    def the_table_is_as_the_model_says(self) -> None:
        columns = self.model.__table__.c
        query = select(columns.id, columns.time_next, columns.epoch, columns.time_acked)
        with self.engine.connect() as connection:
            found = {id_: rest for id_, *rest in connection.execute(query)}
            effects = sorted(connection.scalars(select(self.effects.c.message_id)))
        assert found.keys() == self.rows.keys()
        for id_, (time_next, epoch, time_acked) in found.items():
            row = self.rows[id_]
            assert (time_acked is not None) == row.acked
            assert epoch == row.epoch
            assert time_next == (None if row.acked else row.time_next)
        assert effects == sorted(self.done)
        assert len(set(effects)) == len(effects)

    @invariant()
    def stats_agree(self) -> None:
        with self.engine.connect() as connection:
            stats = self.model.stats(connection)
        rows = [row for row in self.rows.values() if not row.acked]
        waiting = [row for row in rows if not row.dead and row.time_next > self.clock.now]
        assert stats.acked == len(self.rows) - len(rows)
        assert stats.dead == sum(row.dead for row in rows)
        assert stats.scheduled == sum(row.attempts == 0 for row in waiting)
        assert stats.leased == sum(row.attempts > 0 for row in waiting)
        assert stats.ready == len(rows) - stats.dead - len(waiting)

    @invariant()
    def the_states_agree(self) -> None:
        with Session(self.engine) as session:
            found = dict(session.execute(select(self.model.id, self.model.state)).all())
            instances = {
                message.id: message.state for message in session.scalars(select(self.model))
            }
        expected = {id_: row.state(self.clock.now) for id_, row in self.rows.items()}
        assert found == expected
        assert instances == expected


@pytest.fixture
def leasers(make_queue: MakeQueue, receivers: list[Engine]) -> tuple[type[Any], Table, list[Any]]:
    """A queue, the table of its effects, and the leasers of two receiving processes."""
    base = type("Base", (MessageFailuresMixin, DeclarativeBase), {})
    effects = Table(f"effects_{token_hex(6)}", base.metadata, Column("message_id", BigInteger))
    model = make_queue(base=base, ack_wait=5, min_backoff=1, max_backoff=60, purge_after=HOUR / 2)
    return model, effects, [ShardLeaser(model, engine) for engine in receivers]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", SERVERS, indirect=True, ids=lambda backend: backend.name)
def test_any_history_agrees_with_the_model(
    engine: Engine, moved: Clock, leasers: tuple[type[Any], Table, list[Any]]
) -> None:
    run_machine(lambda: Queue(moved, engine, *leasers))
