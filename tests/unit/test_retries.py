"""What a retry policy decides."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vitess_messages import (
    Discard,
    InvalidArgument,
    InvalidArgumentType,
    Retry,
    RetryPolicy,
)


@given(st.integers(0, 10_000), st.floats(0.001, 100), st.floats(100, 10_000))
def test_delays_double_up_to_the_longest(epoch: int, first: float, longest: float) -> None:
    policy = RetryPolicy(max_attempts=None, first_delay=first, longest_delay=longest)
    whole = min(first * 2.0 ** min(epoch, 100), longest)
    delay = policy.judge(OSError(), epoch).delay
    assert delay is not None
    assert whole / 2 * 0.999 <= delay <= whole * 1.001


def test_the_last_attempt_is_the_last() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert policy.judge(OSError("x"), 1).delay is not None
    assert policy.judge(OSError("x"), 2) == (None, "OSError: x (attempt 3 of 3)")
    assert policy.judge(Retry(5), 2).delay is None
    assert policy.is_used_up(3)
    assert not policy.is_used_up(2)
    assert not RetryPolicy(max_attempts=None).is_used_up(10**9)


def test_handlers_have_their_say() -> None:
    policy = RetryPolicy()
    assert policy.judge(Retry(timedelta(minutes=1)), 0).delay == 60
    assert policy.judge(Retry(), 0).delay is not None
    assert policy.judge(Discard("no such user"), 0) == (None, "no such user")


def test_the_nearest_rule_counts() -> None:
    soon = RetryPolicy(max_attempts=5, first_delay=0.001, longest_delay=0.001)
    policy = RetryPolicy(rules={OSError: None, ConnectionError: soon, Retry: soon})
    assert policy.judge(FileNotFoundError(), 0).delay is None
    assert policy.judge(ConnectionResetError(), 0).delay == pytest.approx(0.001, rel=0.5)
    assert policy.judge(KeyError(), 0).delay == pytest.approx(1, rel=0.5)
    assert policy.judge(Retry(), 4).delay is None


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"max_attempts": 0}, InvalidArgument),
        ({"max_attempts": 1.5}, InvalidArgumentType),
        ({"first_delay": 0}, InvalidArgument),
        ({"first_delay": "1"}, InvalidArgumentType),
        ({"longest_delay": 0.5}, InvalidArgument),
        ({"rules": {"OSError": None}}, InvalidArgumentType),
        ({"rules": {OSError: "dead"}}, InvalidArgumentType),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(wrong))):
        RetryPolicy(**wrong)


def test_a_wrong_delay_is_refused_where_it_is_raised() -> None:
    with pytest.raises(InvalidArgument, match="delay=-1"):
        raise Retry(-1)
