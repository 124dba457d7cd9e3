"""Grouped settlements, without a database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import pytest

from sqla_vitess_messages import AlreadySettled, LeaseLost, SubscriberClosed
from sqla_vitess_messages.receiving import batcher
from sqla_vitess_messages.receiving.batcher import (
    LARGEST_GROUP,
    Change,
    PendingSettlement,
    SettlementBatcher,
    settle_together,
)
from sqla_vitess_messages.rows.lease import Lease
from sqla_vitess_messages.runtime import Task, ThreadRuntime
from tests.backends import eventually

ACK = Change("ack")


def pending(id_: int, change: Change = ACK) -> PendingSettlement:
    return PendingSettlement(Lease((id_,), 0, inf, inf), change, Future())


def ids(group: Sequence[PendingSettlement]) -> list[int]:
    return [settlement.lease.message_id for settlement in group]


def results(group: Sequence[PendingSettlement]) -> list[BaseException | None]:
    """Return the errors of the settlements' futures, which must be resolved."""
    futures: list[Any] = [settlement.future for settlement in group]
    return [future.exception(0) for future in futures]


class Commits:
    """Commits of a batcher, each of which waits until the test opens the gate."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, group: Sequence[PendingSettlement]) -> None:
        self.groups.append(ids(group))
        assert self.gate.wait(20)
        for settlement in group:
            settlement.succeed()


@pytest.fixture
def commits() -> Commits:
    return Commits()


@pytest.fixture
def batching(commits: Commits) -> Iterator[SettlementBatcher]:
    batching = SettlementBatcher(commits, ThreadRuntime())
    yield batching
    commits.gate.set()
    batching.close()


def test_settlements_that_come_during_a_commit_share_the_next_one(
    batching: SettlementBatcher, commits: Commits
) -> None:
    commits.gate.clear()
    batching.add(pending(0))
    eventually(lambda: commits.groups)
    for number in range(1, 10):
        batching.add(pending(number))
    commits.gate.set()
    assert batching.flush(20)
    assert commits.groups == [[0], list(range(1, 10))]


def test_a_group_has_a_largest_size(batching: SettlementBatcher, commits: Commits) -> None:
    commits.gate.clear()
    batching.add(pending(0))
    eventually(lambda: commits.groups)
    for number in range(1, LARGEST_GROUP + 3):
        batching.add(pending(number))
    commits.gate.set()
    assert batching.flush(20)
    assert [len(group) for group in commits.groups] == [1, LARGEST_GROUP, 2]
    assert [id_ for group in commits.groups for id_ in group] == list(range(LARGEST_GROUP + 3))


def test_a_flush_waits_for_what_was_added_before_it(
    batching: SettlementBatcher, commits: Commits
) -> None:
    assert batching.flush(0)
    commits.gate.clear()
    batching.add(pending(0))
    assert not batching.flush(0.05)
    commits.gate.set()
    assert batching.flush(20)


def test_close_commits_the_rest_and_refuses_more(
    batching: SettlementBatcher, commits: Commits
) -> None:
    group = [pending(number) for number in range(3)]
    for settlement in group:
        batching.add(settlement)
    batching.close()
    assert results(group) == [None, None, None]
    with pytest.raises(SubscriberClosed):
        batching.add(pending(3))
    assert batching.flush(0)


class Cancelled(BaseException):
    """Ends a task, as :class:`asyncio.CancelledError` does."""


class CancellingRuntime(ThreadRuntime):
    """Runs tasks that end silently when they are cancelled."""

    def start(self, function: Callable[[], object], name: str) -> Task:
        def run() -> None:
            with suppress(Cancelled):
                function()

        return super().start(run, name)


def test_every_future_is_resolved_though_a_commit_is_cancelled() -> None:
    group = [pending(number) for number in range(3)]
    all_added = threading.Event()

    def commit(_group: Sequence[PendingSettlement]) -> None:
        assert all_added.wait(20)
        raise Cancelled

    batching = SettlementBatcher(commit, CancellingRuntime())
    for settlement in group:
        batching.add(settlement)
    all_added.set()
    assert batching.flush(20)
    batching.close()
    assert [type(error) for error in results(group)] == [SubscriberClosed] * 3
    with pytest.raises(SubscriberClosed):
        batching.add(pending(3))


class Database:
    """Records the settlements of each transaction that commits; those of some messages fail."""

    def __init__(self, **bad: Exception) -> None:
        self.bad = {int(name.removeprefix("message_")): error for name, error in bad.items()}
        self.attempts: list[list[tuple[Any, ...]]] = []
        self.committed: list[list[tuple[Any, ...]]] = []

    @contextmanager
    def begin(self) -> Iterator[list[tuple[Any, ...]]]:
        statements: list[tuple[Any, ...]] = []
        self.attempts.append(statements)
        yield statements
        self.committed.append(statements)

    def statement(self, outcome: str) -> Callable[..., None]:
        def execute(_model: Any, connection: Any, leases: Sequence[Any], *values: Any) -> None:
            for lease in leases:
                if lease.message_id in self.bad:
                    raise self.bad[lease.message_id]
            connection.append((outcome, [lease.message_id for lease in leases], *values))

        return execute


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that makes a database, to which all settlements go."""

    def connect(**bad: Exception) -> Any:
        database = Database(**bad)
        for outcome in ("ack", "fail", "retry"):
            monkeypatch.setattr(batcher.settle, outcome, database.statement(outcome))
        return database

    return connect


MODEL: Any = object()


def test_equal_changes_are_one_statement(connect: Callable[..., Any]) -> None:
    database = connect()
    group = [
        pending(0),
        pending(1, Change("fail", reason="a")),
        pending(2),
        pending(3, Change("fail", reason="b")),
        pending(4, Change("retry", delay=5)),
        pending(5, Change("fail", reason="a")),
        pending(6, Change("retry", reason="c")),
    ]
    settle_together(MODEL, database, group)
    assert database.committed == [
        [
            ("ack", [0, 2]),
            ("fail", [1, 5], "a"),
            ("fail", [3], "b"),
            ("retry", [4], 5, None),
            ("retry", [6], None, "c"),
        ]
    ]
    assert results(group) == [None] * 7


def test_the_same_settlement_twice_is_one(connect: Callable[..., Any]) -> None:
    database = connect()
    once = pending(0)
    group = [once, pending(1), once._replace(future=Future())]
    settle_together(MODEL, database, group)
    assert database.committed == [[("ack", [0, 1])]]
    assert results(group) == [None] * 3


def test_bad_settlements_are_found_by_halves_and_fail_alone(connect: Callable[..., Any]) -> None:
    acked, lost = AlreadySettled("acked"), LeaseLost("lost")
    database = connect(message_5=acked, message_63=lost)
    group = [pending(number) for number in range(64)]
    settle_together(MODEL, database, group)
    expected: list[Exception | None] = [None] * 64
    expected[5], expected[63] = acked, lost
    assert results(group) == expected
    committed = [id_ for [(_outcome, ids)] in database.committed for id_ in ids]
    assert committed == [id_ for id_ in range(64) if id_ not in (5, 63)]
    assert len(database.attempts) < 30


def test_a_failure_of_the_database_fails_the_whole_group(connect: Callable[..., Any]) -> None:
    down = OSError("down")
    database = connect(message_1=down)
    group = [pending(number) for number in range(4)]
    settle_together(MODEL, database, group)
    assert results(group) == [down] * 4
    assert len(database.attempts) == 1


def test_a_cancelled_future_stays_cancelled() -> None:
    for resolve in (PendingSettlement.succeed, lambda p: p.fail(OSError())):
        settlement = pending(0)
        future: Any = settlement.future
        future.cancel()
        resolve(settlement)
        assert future.cancelled()
