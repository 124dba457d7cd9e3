"""The slots of a subscriber, without a database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import MetaData, Table

from sqla_vitess_messages.events import Dead, Delivered, LeaseExpired, Outcome, Settled
from sqla_vitess_messages.receiving.in_flight import COMMIT_POLL_INTERVAL, InFlight
from sqla_vitess_messages.rows.epochs import GENERATION
from sqla_vitess_messages.rows.lease import Lease, Settling, give_lease, lease_of

LONG = 1000.0
"""Seconds that no test lasts."""


class FakeCommit:
    """A COMMIT whose response the test gives."""

    is_over = False
    succeeded = False

    def end(self, *, succeeded: bool = True) -> None:
        self.is_over, self.succeeded = True, succeeded


def message(id_: int, *, epoch: int = 0, usable: float = LONG, expires: float = LONG) -> Any:
    """Return a message whose lease ends in so many seconds."""
    now = time.monotonic()
    made: Any = SimpleNamespace(id=id_, _sa_instance_state=SimpleNamespace(info={}))
    give_lease(made, Lease((id_,), epoch, now + usable, now + expires))
    return made


def messages(count: int) -> list[Any]:
    return [message(number) for number in range(count)]


def settle(*settled: Any, outcome: Outcome = "ack") -> FakeCommit:
    """Begin the commit of settlements."""
    commit = FakeCommit()
    leases = [lease for message in settled if (lease := lease_of(message)) is not None]
    settling = Settling(outcome, leases, Table("queue", MetaData()))
    Lease.settle(settling, commit)  # type: ignore[arg-type]
    return commit


class Slots:
    """An InFlight that receives the settlements of its messages, as in a subscriber."""

    def __init__(self, limit: int, *, emit_events: bool = False) -> None:
        self.in_flight: InFlight[Any] = InFlight("queue", limit, emit_events=emit_events)

    def checkout(self, limit: int) -> list[Any]:
        return self.in_flight.checkout(limit, self.in_flight.add_settling)


def ids(found: Sequence[Any]) -> list[int]:
    return [message.id for message in found]


def test_messages_are_handed_out_in_order_up_to_both_limits() -> None:
    slots = Slots(3)
    slots.in_flight.add(messages(5))
    assert ids(slots.checkout(2)) == [0, 1]
    assert ids(slots.checkout(9)) == [2]
    assert slots.checkout(9) == []
    assert slots.in_flight.free == -2


def test_a_slot_is_free_when_the_commit_of_the_settlement_has_succeeded() -> None:
    slots = Slots(1)
    slots.in_flight.add(messages(2))
    [first] = slots.checkout(1)
    commit = settle(first)
    assert slots.checkout(1) == []
    commit.end()
    assert ids(slots.checkout(1)) == [1]


def test_a_commit_that_fails_keeps_the_slot_taken() -> None:
    slots = Slots(1)
    slots.in_flight.add(messages(2))
    [first] = slots.checkout(1)
    settle(first).end(succeeded=False)
    assert slots.checkout(1) == []
    settle(first).end()
    assert ids(slots.checkout(1)) == [1]


def test_an_expired_lease_frees_its_slot() -> None:
    slots = Slots(1, emit_events=True)
    slots.in_flight.add([message(0, expires=0.01), message(1)])
    assert ids(slots.checkout(1)) == [0]
    time.sleep(0.02)
    assert ids(slots.checkout(1)) == [1]
    assert LeaseExpired("queue", 0, 0) in slots.in_flight.take_events()


def test_a_message_that_waited_too_long_is_released_and_not_handed_out() -> None:
    slots = Slots(5)
    slots.in_flight.add([message(0, usable=-1), message(1, usable=-1), message(2)])
    assert not slots.in_flight.must_release
    assert ids(slots.checkout(5)) == [2]
    assert slots.in_flight.must_release
    unusable = slots.in_flight.unusable
    assert ids(unusable) == [0, 1]
    assert slots.in_flight.free == 2
    slots.in_flight.add([message(3, usable=-1)])
    slots.in_flight.free_slots()
    slots.in_flight.drop_unusable(unusable)
    assert ids(slots.in_flight.unusable) == [3]


def test_waiting_messages_beyond_the_limit_are_the_surplus() -> None:
    slots = Slots(3)
    slots.in_flight.add(messages(3))
    handed_out = slots.checkout(2)
    assert not slots.in_flight.must_release
    slots.in_flight.add([message(3), message(4)])
    assert slots.in_flight.must_release
    assert ids(slots.in_flight.take_surplus()) == [4, 3]
    assert not slots.in_flight.must_release
    assert ids([*handed_out, *slots.checkout(9)]) == [0, 1, 2]


def test_messages_handed_out_are_never_surplus() -> None:
    slots = Slots(2)
    slots.in_flight.add(messages(2))
    slots.checkout(2)
    slots.in_flight.add([message(2)])
    assert ids(slots.in_flight.take_surplus()) == [2]
    assert slots.in_flight.free == 0
    assert slots.in_flight.take_surplus() == []


def test_all_messages_that_were_not_handed_out_are_released_at_the_end() -> None:
    slots = Slots(9)
    slots.in_flight.add([message(0), message(1, usable=-1), message(2)])
    slots.checkout(1)
    slots.in_flight.free_slots()
    assert sorted(ids(slots.in_flight.take_all_waiting())) == [1, 2]
    assert slots.in_flight.free == 8
    assert slots.in_flight.take_all_waiting() == []


def test_it_pays_to_receive_when_nothing_waits_or_half_of_the_slots_are_free() -> None:
    slots = Slots(4)
    assert slots.in_flight.wants_more
    slots.in_flight.add(messages(3))
    assert not slots.in_flight.wants_more  # One of four slots is free, and messages wait.
    taken = slots.checkout(3)
    assert slots.in_flight.wants_more  # One slot is free, and nothing waits.
    slots.in_flight.add([message(3)])
    assert not slots.in_flight.wants_more
    settle(taken[0]).end()
    settle(taken[1]).end()
    slots.in_flight.free_slots()
    assert slots.in_flight.wants_more  # One message waits, and two slots are free.


def test_settlements_under_way_will_make_it_pay_to_receive() -> None:
    slots = Slots(1)
    slots.in_flight.add(messages(1))
    [only] = slots.checkout(1)
    assert not slots.in_flight.may_want_more
    settle(only)
    assert slots.in_flight.may_want_more
    assert not slots.in_flight.wants_more


def test_the_next_change_is_a_commit_or_the_end_of_a_lease() -> None:
    slots = Slots(2)
    assert slots.in_flight.seconds_until_change(7) == 7
    slots.in_flight.add([message(0, expires=5), message(1, expires=3)])
    first, _second = slots.checkout(2)
    assert slots.in_flight.seconds_until_change(7) == pytest.approx(3, abs=0.5)
    assert slots.in_flight.seconds_until_change(1) == 1
    settle(first)
    assert slots.in_flight.seconds_until_change(7) == COMMIT_POLL_INTERVAL


def test_deliveries_and_settlements_become_events() -> None:
    slots = Slots(3, emit_events=True)
    slots.in_flight.add([message(0), message(1, epoch=GENERATION + 2), message(2)])
    taken = slots.checkout(3)
    delivered = [
        Delivered("queue", number, epoch, attempts)
        for number, epoch, attempts in ((0, 0, 0), (1, GENERATION + 2, 2), (2, 0, 0))
    ]
    assert slots.in_flight.take_events() == delivered
    assert slots.in_flight.take_events() == []
    commits = [
        settle(taken[0], outcome="ack"),
        settle(taken[1], outcome="fail"),
        settle(taken[2], outcome="retry"),
    ]
    slots.in_flight.free_slots()
    assert slots.in_flight.take_events() == []
    for commit in commits:
        commit.end()
    slots.in_flight.free_slots()
    events = slots.in_flight.take_events()
    settled = [(e.message_id, e.epoch, e.how) for e in events if isinstance(e, Settled)]
    assert settled == [(0, 0, "ack"), (1, GENERATION + 2, "fail"), (2, 0, "retry")]
    assert [event for event in events if isinstance(event, Dead)] == [
        Dead("queue", 1, GENERATION + 2)
    ]


def test_without_a_listener_no_events_are_collected() -> None:
    slots = Slots(1)
    slots.in_flight.add(messages(1))
    settle(*slots.checkout(1)).end()
    slots.in_flight.free_slots()
    assert slots.in_flight.take_events() == []


@given(
    st.integers(1, 5),
    st.lists(st.sampled_from(["add", "checkout", "settle", "roll back", "surplus"]), max_size=40),
)
def test_no_history_hands_out_more_than_the_limit(limit: int, history: list[str]) -> None:
    slots = Slots(limit)
    added = settled = 0
    unsettled: list[Any] = []
    released: list[Any] = []
    for step in history:
        if step == "add":
            slots.in_flight.add([message(added)])
            added += 1
        elif step == "checkout":
            unsettled += slots.checkout(2)
        elif step == "surplus":
            released += slots.in_flight.take_surplus()
        elif unsettled:
            settle(unsettled[0]).end(succeeded=step == "settle")
            if step == "settle":
                del unsettled[0]
                settled += 1
        slots.in_flight.free_slots()
        assert len(unsettled) <= limit
    waiting = slots.in_flight.take_all_waiting()
    assert slots.in_flight.free == limit - len(unsettled)
    found = ids([*waiting, *released, *unsettled])
    assert len(found) == len(set(found)) == added - settled
