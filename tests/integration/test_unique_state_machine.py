"""Random histories of a unique queue, compared step by step with a model in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from sqla_vitess_messages import AlreadyEnqueued, AlreadySettled, LeaseLost
from sqla_vitess_messages.rows import states
from sqla_vitess_messages.table.layouts import DEAD
from sqla_vitess_messages.table.options import Layout
from sqla_vitess_messages.transports.leaser import ShardLeaser
from tests.backends import BACKENDS
from tests.state_machines import HOUR, Clock, run_machine

MakeQueue = Callable[..., type[Any]]

SERVERS = [backend for backend in BACKENDS if backend.name in ("sqlite", "mysql")]
SECOND = 10**9
keys = st.integers(1, 3)
seconds = st.sampled_from([0, 0.5, 5, 30, HOUR])
committed = st.booleans()
how = st.sampled_from(["raise", "skip", "replace", "add"])


@dataclass(eq=False)
class Expected:
    """What a message should be.

    :param payload: a number that each message has alone.
    :param due: when this payload is to be delivered, if it has replaced another.
    :param time_next: when it is delivered, unless its holder settles it before.
    :param holder: who was given it last, and may still ack if its payload was replaced since.
    :param held: whether that lease may hold.
    """

    id: int
    key: int
    payload: int
    priority: int
    time_next: int
    due: int = 0
    holder: Held | None = None
    held: bool = False
    acked: bool = False

    @property
    def dead(self) -> bool:
        return self.time_next == DEAD

    @property
    def unsettled(self) -> bool:
        return not self.acked and not self.dead


@dataclass(eq=False)
class Held:
    """A received message, as its holder sees it."""

    message: Any
    payload: int
    expected: Expected
    settled: bool = False
    released: bool = False


@dataclass
class World:
    """The expected messages, and the payloads whose effect should have happened."""

    messages: dict[int, Expected] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)

    def unsettled(self, key: int) -> Expected | None:
        found = [m for m in self.messages.values() if m.key == key and m.unsettled]
        assert len(found) <= 1
        return found[0] if found else None


class UniqueQueue(RuleBasedStateMachine):
    """Several producers, two receivers, a clock that jumps, and transactions that roll back."""

    held = Bundle("held")

    def __init__(
        self, clock: Clock, engine: Engine, model: type[Any], effects: Table, leasers: list[Any]
    ) -> None:
        super().__init__()
        self.clock, self.engine, self.model, self.effects = clock, engine, model, effects
        self.leasers = leasers
        self.has_priority = "priority" in model.__table__.c
        self.world = World()
        self.payloads = 0

    def teardown(self) -> None:
        try:
            self.every_last_payload_is_delivered()
        finally:
            with self.engine.begin() as connection:
                connection.execute(delete(self.model.__table__))
                connection.execute(delete(self.effects))

    def every_last_payload_is_delivered(self) -> None:
        """Whatever has happened, what is unsettled is delivered at last, once."""
        self.move_clock(3 * HOUR)
        waiting = {m.key: m for m in self.world.messages.values() if m.unsettled}
        self.leasers[0]._due._priorities_until = 0.0
        messages = self.leasers[0].lease(10).messages
        assert {m.key: m.body for m in messages} == {
            key: str(message.payload) for key, message in waiting.items()
        }
        with Session(self.engine) as session, session.begin():
            self.model.ack_all(session, messages)
        assert not self.leasers[0].lease(10).messages

    @contextmanager
    def transaction(self, commit: bool) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session:
            yield session
            if commit:
                session.commit()

    def message(self, key: int, priority: int, delay: float) -> Any:
        """Return a message whose id and time are the same whenever a history is repeated."""
        self.payloads += 1
        self.clock.now += 1000
        values: dict[str, Any] = {"priority": priority} if self.has_priority else {}
        return self.model(
            id=self.payloads,
            tenant=1,
            key=key,
            body=str(self.payloads),
            deliver_in=delay,
            **values,
        )

    @initialize()
    def begin(self) -> None:
        for key in (1, 2):
            self.enqueue(key, 50, 0, "raise", commit=True)
        self.move_clock(1)

    @rule(
        key=keys, priority=st.sampled_from([1, 50]), delay=seconds, if_exists=how, commit=committed
    )
    def enqueue(self, key: int, priority: int, delay: float, if_exists: str, commit: bool) -> None:
        message = self.message(key, priority, delay)
        existing = self.world.unsettled(key)
        with self.transaction(commit) as session:
            if existing is not None and if_exists in ("raise", "add"):
                error = AlreadyEnqueued if if_exists == "raise" else IntegrityError
                with pytest.raises(error):
                    self.insert(session, message, if_exists)
                session.rollback()
                return
            done = self.insert(session, message, if_exists)
            assert done == (existing is None or if_exists == "replace")
        if commit:
            self.note_enqueued(message, priority, existing, if_exists)

    def insert(self, session: Session, message: Any, if_exists: str) -> bool:
        if if_exists == "add":
            session.add(message)
            session.flush()
            return True
        return bool(self.model.enqueue(session, message, if_exists=if_exists))

    def note_enqueued(
        self, message: Any, priority: int, existing: Expected | None, if_exists: str
    ) -> None:
        payload, due = self.payloads, message.time_next
        if existing is None:
            new = Expected(message.id, message.key, payload, priority, due)
            self.world.messages[message.id] = new
        elif if_exists == "replace":
            existing.payload, existing.priority, existing.due = payload, priority, due
            if self.holds(existing):
                existing.time_next = max(existing.time_next, due + 1)
            else:
                existing.time_next = due
                existing.held = False

    def holds(self, message: Expected) -> bool:
        return message.held and message.time_next > self.clock.now

    @rule(batch=st.lists(st.tuples(keys, seconds), min_size=2, max_size=5), commit=committed)
    def replace_many(self, batch: list[tuple[int, float]], commit: bool) -> None:
        messages, numbers = [], []
        for key, delay in batch:
            messages.append(self.message(key, 50, delay))
            numbers.append(self.payloads)
        with self.transaction(commit) as session:
            done = self.model.enqueue_all(session, messages, if_exists="replace")
            assert done == len({key for key, _delay in batch})
        if commit:
            last = {message.key: (message, n) for message, n in zip(messages, numbers, strict=True)}
            for message, number in last.values():
                self.payloads, latest = number, self.payloads
                existing = self.world.unsettled(message.key)
                self.note_enqueued(message, 50, existing, "replace")
                self.payloads = latest

    @rule(step=st.sampled_from([0.001, 1, 6, 70, HOUR]))
    def move_clock(self, step: float) -> None:
        self.clock.now += int(step * SECOND)

    @rule(target=held, who=st.integers(0, 1), limit=st.integers(1, 3))
    def receive(self, who: int, limit: int) -> Any:
        leaser = self.leasers[who]
        leaser._due._priorities_until = 0.0
        due = [
            m for m in self.world.messages.values() if m.unsettled and m.time_next < self.clock.now
        ]
        received = []
        messages = leaser.lease(limit).messages
        assert len(messages) == min(limit, len(due))
        for message in messages:
            expected = self.world.messages[message.id]
            assert expected in due
            assert message.body == str(expected.payload)
            held = Held(message, expected.payload, expected)
            expected.holder, expected.held = held, True
            expected.time_next = self.stored_time(expected)
            assert expected.time_next > self.clock.now
            received.append(held)
        return multiple(*received)

    @rule(target=held, who=st.integers(0, 1))
    def receive_after_leases_expired(self, who: int) -> Any:
        """As when a receiver is killed, and another gets its messages."""
        self.move_clock(2 * HOUR)
        return self.receive(who, 3)

    def stored_time(self, expected: Expected) -> int:
        table = self.model.__table__
        with self.engine.connect() as connection:
            found = connection.scalar(select(table.c.time_next).where(table.c.id == expected.id))
        assert found is not None
        return int(found)

    @rule(held=held, commit=committed)
    def ack(self, held: Held, commit: bool) -> None:
        expected = held.expected
        replaced = held.payload != expected.payload
        if held.released and replaced:
            return  # No subscriber acks what it has released.
        with self.transaction(commit) as session:
            session.execute(insert(self.effects).values(payload=held.payload))
            if expected.acked or (replaced and (expected.dead or expected.holder is not held)):
                with pytest.raises(AlreadySettled):
                    held.message.ack(session)
                session.rollback()
                return
            held.message.ack(session)
        if commit:
            held.settled = True
            self.world.done.append(held.payload)
            if replaced:
                self.resume(expected)
            else:
                expected.acked = True

    def resume(self, expected: Expected) -> None:
        expected.time_next, expected.holder, expected.held = expected.due, None, False

    @rule(held=held, commit=committed)
    def fail(self, held: Held, commit: bool) -> None:
        def failed(expected: Expected) -> None:
            expected.time_next, expected.held = DEAD, False

        self.settle(held, commit, held.message.fail, failed)

    @rule(held=held, commit=committed, delay=seconds)
    def retry(self, held: Held, commit: bool, delay: float) -> None:
        def retried(expected: Expected) -> None:
            expected.time_next = self.clock.now + int(delay * SECOND)
            expected.held = False

        def call(session: Session) -> None:
            held.message.retry(session, delay)

        self.settle(held, commit, call, retried)

    @rule(held=held, commit=committed)
    def extend(self, held: Held, commit: bool) -> None:
        def extended(expected: Expected) -> None:
            expected.time_next = self.clock.now + 60 * SECOND
            if held.payload != expected.payload:
                expected.time_next = max(expected.time_next, expected.due + 1)

        def call(session: Session) -> None:
            held.message.extend(session, 60)

        self.settle(held, commit, call, extended, settles=False)

    def settle(
        self,
        held: Held,
        commit: bool,
        call: Callable[[Session], None],
        then: Callable[[Expected], None],
        *,
        settles: bool = True,
    ) -> None:
        expected = held.expected
        valid = (
            expected.unsettled
            and not held.settled
            and not held.released
            and expected.holder is held
            and expected.held
            and expected.time_next > self.clock.now
        )
        with self.transaction(commit) as session:
            if not valid:
                with pytest.raises(LeaseLost):
                    call(session)
                session.rollback()
                return
            call(session)
        if commit:
            held.settled = settles
            if settles and held.payload != expected.payload:
                self.resume(expected)
            else:
                then(expected)

    @rule(held=held, who=st.integers(0, 1))
    def release(self, held: Held, who: int) -> None:
        """As a subscriber does with what nobody got."""
        if held.settled or held.released:
            return
        expected = held.expected
        self.leasers[who].release([held.message])
        held.released = True
        if not expected.unsettled or expected.holder is not held or not expected.held:
            return
        if held.payload == expected.payload:
            expected.time_next, expected.held, expected.holder = self.clock.now, False, None
        elif expected.time_next > self.clock.now:
            self.resume(expected)

    @rule(commit=committed)
    def requeue(self, commit: bool) -> None:
        dead = [m for m in self.world.messages.values() if m.dead and not m.acked]
        possible = {m.key for m in dead if self.world.unsettled(m.key) is None}
        with self.transaction(commit) as session:
            assert self.model.requeue(session) == len(possible)
        if commit:
            for message in dead:
                if (found := self.stored_time(message)) != DEAD:
                    assert found == self.clock.now
                    assert message.key in possible
                    possible.remove(message.key)
                    message.time_next, message.holder = found, None
            assert not possible

    @rule(key=keys, delay=seconds, commit=committed)
    def reschedule(self, key: int, delay: float, commit: bool) -> None:
        message = self.world.unsettled(key)
        moves = message is not None and not self.holds(message)
        with self.transaction(commit) as session:
            some = self.model.key == key
            assert self.model.reschedule(session, some, deliver_in=delay) == moves
        if commit and moves:
            assert message is not None
            message.time_next, message.held = self.clock.now + int(delay * SECOND), False
            if message.holder is not None and message.holder.payload == message.payload:
                message.holder = None  # It was handed out before, and is of another epoch now.
            else:
                message.due = message.time_next

    @rule(key=keys, commit=committed)
    def cancel(self, key: int, commit: bool) -> None:
        message = self.world.unsettled(key)
        with self.transaction(commit) as session:
            some = (self.model.key == key) & (self.model.state != "dead")
            assert self.model.cancel(session, some) == (message is not None)
        if commit and message is not None:
            message.acked = True
            del self.world.messages[message.id]

    @invariant()
    def the_table_is_as_the_model_says(self) -> None:
        columns = self.model.__table__.c
        priority = columns.priority if self.has_priority else columns.id
        query = select(columns.id, columns.body, columns.time_next, columns.time_acked, priority)
        with self.engine.connect() as connection:
            found = {id_: rest for id_, *rest in connection.execute(query)}
            effects = list(connection.scalars(select(self.effects.c.payload)))
        assert found.keys() == self.world.messages.keys()
        for id_, (body, time_next, time_acked, priority) in found.items():
            expected = self.world.messages[id_]
            assert body == str(expected.payload)
            assert (time_acked is not None) == expected.acked
            assert time_next == (None if expected.acked else expected.time_next)
            assert not self.has_priority or priority == expected.priority
        assert sorted(effects) == sorted(self.world.done)
        assert len(set(effects)) == len(effects)

    @invariant()
    def stats_agree(self) -> None:
        with self.engine.connect() as connection:
            stats = self.model.stats(connection)
        messages = self.world.messages.values()
        waiting = [m for m in messages if m.unsettled and m.time_next > self.clock.now]
        assert stats.acked == sum(m.acked for m in messages)
        assert stats.dead == sum(m.dead and not m.acked for m in messages)
        assert stats.scheduled + stats.leased == len(waiting)
        assert stats.leased >= sum(self.holds(m) for m in waiting)
        assert stats.ready == sum(m.unsettled for m in messages) - len(waiting)


@pytest.fixture
def moved(moved: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock; and no jitter, as the model has the exact times."""
    monkeypatch.setattr(states, "random_jitter", lambda: 100)
    return moved


@pytest.fixture(params=["portable", "minimal"])
def unique_leasers(
    request: pytest.FixtureRequest, make_queue: MakeQueue, receivers: list[Engine]
) -> tuple[type[Any], Table, list[Any]]:
    """A unique queue, the table of its effects, and the leasers of two receiving processes."""
    base = type("Base", (DeclarativeBase,), {})
    effects = Table(f"effects_{token_hex(6)}", base.metadata, Column("payload", BigInteger))
    layout: Layout = request.param
    model = make_queue(
        base=base,
        attributes={
            "tenant": mapped_column("tenant", BigInteger, nullable=False),
            "key": mapped_column("key", BigInteger, nullable=False),
        },
        ack_wait=5,
        min_backoff=1,
        max_backoff=60,
        layout=layout,
        unique_by=("tenant", "key"),
    )
    return model, effects, [ShardLeaser(model, engine) for engine in receivers]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", SERVERS, indirect=True, ids=lambda backend: backend.name)
def test_any_history_of_a_unique_queue_agrees_with_the_model(
    engine: Engine, moved: Clock, unique_leasers: tuple[type[Any], Table, list[Any]]
) -> None:
    run_machine(lambda: UniqueQueue(moved, engine, *unique_leasers))
