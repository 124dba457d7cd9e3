"""The renewal of leases while handlers run, without a database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from sqla_vitess_messages import LeaseLost
from sqla_vitess_messages.receiving.renewal import Heartbeat, LeaseRenewals
from sqla_vitess_messages.rows.lease import Lease
from sqla_vitess_messages.runtime import ThreadRuntime
from tests.backends import eventually

ACK_WAIT = 0.06


def lease(message_id: int) -> Lease:
    now = time.monotonic()
    return Lease((message_id,), 0, now + 100, now + 100)


def test_leases_are_renewed_while_they_are_watched() -> None:
    renewals = LeaseRenewals()
    one, two = lease(1), lease(2)
    with renewals.watch([one]):
        assert renewals.to_renew() == [one]
        with renewals.watch([two]):
            assert set(renewals.to_renew()) == {one, two}
        assert renewals.to_renew() == [one]
    assert renewals.to_renew() == []


def test_a_block_that_raises_ends_the_renewal() -> None:
    renewals = LeaseRenewals()
    with pytest.raises(LookupError), renewals.watch([lease(1)]):
        raise LookupError
    assert renewals.to_renew() == []


def test_a_lease_that_is_being_settled_is_not_renewed_unless_that_is_rolled_back() -> None:
    renewals = LeaseRenewals()
    one, two = lease(1), lease(2)
    with renewals.watch([one, two]):
        renewals.pause([one])
        assert renewals.to_renew() == [two]
        renewals.resume([one])
        assert set(renewals.to_renew()) == {one, two}


def test_a_lost_lease_is_not_renewed_and_can_not_be_settled() -> None:
    renewals = LeaseRenewals()
    one, two = lease(1), lease(2)
    with renewals.watch([one, two]):
        renewals.mark_lost([two])
        assert renewals.to_renew() == [one]
        renewals.pause([one])
        with pytest.raises(LeaseLost, match=r"\[2\] was lost") as raised:
            renewals.pause([one, two])
        assert raised.value.message_ids == (2,)
        renewals.resume([one, two])
        assert renewals.to_renew() == [one]


def test_a_loss_that_is_noticed_after_the_handler_is_forgotten() -> None:
    renewals = LeaseRenewals()
    one = lease(1)
    with renewals.watch([one]):
        pass
    renewals.mark_lost([one])
    with renewals.watch([one]):
        renewals.pause([one])


def test_a_loss_ends_with_the_block() -> None:
    renewals = LeaseRenewals()
    one = lease(1)
    with renewals.watch([one]):
        renewals.mark_lost([one])
    with renewals.watch([one]):
        assert renewals.to_renew() == [one]


Extend = Callable[[Sequence[Lease], float], Sequence[Lease]]
Start = Callable[..., Heartbeat]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a heartbeat, which is stopped at the end of the test."""
    started: list[Heartbeat] = []

    def start(renewals: LeaseRenewals, extend: Extend, ack_wait: float = ACK_WAIT) -> Heartbeat:
        started.append(Heartbeat(renewals, extend, ack_wait, ThreadRuntime()))
        return started[-1]

    yield start
    for heartbeat in started:
        heartbeat.stop()


def test_a_heartbeat_extends_watched_leases_until_it_is_stopped(start: Start) -> None:
    renewals = LeaseRenewals()
    extended: list[tuple[Sequence[Lease], float]] = []

    def extend(leases: Sequence[Lease], seconds: float) -> Sequence[Lease]:
        extended.append((leases, seconds))
        return []

    heartbeat = start(renewals, extend)
    time.sleep(ACK_WAIT)
    assert extended == []
    one = lease(1)
    with renewals.watch([one]):
        eventually(lambda: len(extended) > 2)
    assert extended[0] == ([one], ACK_WAIT)
    with renewals.watch([one]):
        heartbeat.stop()
        count = len(extended)
        time.sleep(ACK_WAIT)
        assert len(extended) == count
    assert "Heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_lease_that_ends_soon_is_renewed_before(start: Start) -> None:
    """So does that of a message which has waited in the subscriber for long."""
    renewals = LeaseRenewals()
    extended: list[float] = []

    def extend(leases: Sequence[Lease], _seconds: float) -> Sequence[Lease]:
        extended.extend(one.expires_at - time.monotonic() for one in leases)
        return []

    start(renewals, extend, 60)
    soon = time.monotonic() + 20.5
    with renewals.watch([Lease((1,), 0, soon, soon), lease(2)]):
        time.sleep(0.1)
        assert extended == []
        eventually(lambda: len(extended) == 2)
    assert 15 < min(extended) <= 20.1
    late = time.monotonic() + 0.5
    with renewals.watch([Lease((3,), 0, late, late)]):
        eventually(lambda: len(extended) == 3)
    assert extended[2] > 0


def test_a_heartbeat_marks_the_leases_that_are_lost(start: Start) -> None:
    renewals = LeaseRenewals()
    one, two = lease(1), lease(2)
    start(renewals, lambda _leases, _seconds: [one])
    with renewals.watch([one, two]):
        eventually(lambda: renewals.to_renew() == [two])


def test_a_heartbeat_goes_on_after_an_error(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    renewals = LeaseRenewals()
    attempts: list[Sequence[Lease]] = []

    def extend(leases: Sequence[Lease], _seconds: float) -> Sequence[Lease]:
        attempts.append(leases)
        raise OSError("no server")

    start(renewals, extend)
    with renewals.watch([lease(1)]):
        eventually(lambda: len(attempts) > 1)
        eventually(lambda: "leases could not be extended: no server" in caplog.text)
