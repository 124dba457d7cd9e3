"""The arithmetic of the epoch: a fence that only grows, and the attempts in its lower bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import ColumnElement, Connection, bindparam, create_engine, select

from sqla_vitess_messages import InvalidArgument, QueueOptions, RetryPolicy, Subscriber
from sqla_vitess_messages.clock import MAX_SECONDS
from sqla_vitess_messages.rows.backoff import backoff, longest_backoff
from sqla_vitess_messages.rows.epochs import (
    GENERATION,
    MAX_ATTEMPTS,
    after_release,
    after_requeue,
    attempts,
)
from tests.backends import make_queue_class

EPOCH: ColumnElement[int] = bindparam("epoch")  # type: ignore[assignment]

epochs = st.integers(0, 2**62)
attempt_counts = st.integers(0, MAX_ATTEMPTS - 1)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def computed(connection: Connection, expression: Any, epoch: int) -> int:
    """Return what the database makes of an expression."""
    value: int = connection.execute(select(expression), {"epoch": epoch}).scalar_one()
    return value


@given(generation=st.integers(0, 2**40), seen=attempt_counts)
def test_a_release_takes_one_attempt_back_and_is_never_seen_again(
    connection: Connection, generation: int, seen: int
) -> None:
    before = generation * GENERATION + seen
    fence = before + 1
    released = computed(connection, after_release(EPOCH), fence)
    assert attempts(released) == attempts(before) == seen
    assert released > fence


@given(epoch=epochs)
def test_a_requeue_takes_all_attempts_back_and_is_never_seen_again(
    connection: Connection, epoch: int
) -> None:
    requeued = computed(connection, after_requeue(EPOCH), epoch)
    assert attempts(requeued) == 0
    assert requeued > epoch
    assert requeued - epoch <= GENERATION


@given(epoch=epochs)
def test_the_database_counts_attempts_as_python_does(connection: Connection, epoch: int) -> None:
    assert computed(connection, attempts(EPOCH), epoch) == attempts(epoch)


@given(
    count=st.integers(-1, MAX_ATTEMPTS),
    first=st.floats(0.001, MAX_SECONDS),
    most=st.none() | st.floats(1, 100),
    jitter=st.integers(67, 133),
)
def test_a_backoff_overflows_no_time_and_has_an_upper_bound(
    connection: Connection, count: int, first: float, most: float | None, jitter: int
) -> None:
    limit = None if most is None else min(first * most, MAX_SECONDS)
    options = QueueOptions(min_backoff=first, max_backoff=limit)
    wait = computed(connection, backoff(EPOCH, options, jitter), count)
    assert first * 0.99 <= wait / 1e9 <= longest_backoff(max(count, 0), options) * 1.01
    now = 2_000_000_000 * 10**9
    assert isinstance(wait, int)
    assert now + wait < 2**63 - 1


def test_more_attempts_than_an_epoch_counts_are_refused() -> None:
    model = make_queue_class(QueueOptions())
    Subscriber(model, "sqlite:///x.db", max_attempts=MAX_ATTEMPTS)
    RetryPolicy(max_attempts=MAX_ATTEMPTS)
    with pytest.raises(InvalidArgument, match="max_attempts=65536"):
        Subscriber(model, "sqlite:///x.db", max_attempts=MAX_ATTEMPTS + 1)
    with pytest.raises(InvalidArgument, match="max_attempts=65536"):
        RetryPolicy(max_attempts=MAX_ATTEMPTS + 1)


def test_a_message_knows_its_attempts() -> None:
    queue = make_queue_class(QueueOptions())
    assert queue().attempts == 0
    assert queue(epoch=3 * GENERATION + 2).attempts == 2
