"""The decisions of a retry policy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vitess_messages import Discard, InvalidArgument, InvalidArgumentType, Retry, RetryPolicy
from sqla_vitess_messages.receiving.retries import decide, is_exhausted


@given(st.integers(0, 10_000), st.floats(0.001, 100), st.floats(100, 10_000))
def test_delays_double_up_to_the_longest(epoch: int, shortest: float, longest: float) -> None:
    policy = RetryPolicy(max_attempts=None, min_delay=shortest, max_delay=longest)
    whole = min(shortest * 2.0 ** min(epoch, 100), longest)
    delay = decide(policy, OSError(), epoch).delay
    assert delay is not None
    assert whole / 2 * 0.999 <= delay <= whole * 1.001


def test_the_last_attempt_is_the_last() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert decide(policy, OSError("x"), 1).delay is not None
    assert decide(policy, OSError("x"), 2) == (None, "OSError: x (attempt 3 of 3)")
    assert decide(policy, Retry(5), 2).delay is None
    assert is_exhausted(policy, 3)
    assert not is_exhausted(policy, 2)
    assert not is_exhausted(RetryPolicy(max_attempts=None), 10**9)


def test_a_message_without_a_verdict_is_handed_out_as_often_as_any_rule_allows() -> None:
    """Which of them is the one that it would fail by, nobody knows."""
    policy = RetryPolicy(
        max_attempts=2, rules={OSError: RetryPolicy(max_attempts=4), KeyError: None}
    )
    assert not is_exhausted(policy, 3)
    assert is_exhausted(policy, 4)
    endless = RetryPolicy(rules={OSError: RetryPolicy(max_attempts=None)})
    assert not is_exhausted(endless, 10**9)


def test_a_rule_for_all_exceptions_is_about_failures() -> None:
    class Later(Retry):
        pass

    policy = RetryPolicy(rules={Exception: None})
    assert decide(policy, ValueError(), 0).delay is None
    assert decide(policy, Retry(5), 0).delay == 5
    assert decide(policy, Later(5), 0).delay == 5
    assert decide(RetryPolicy(rules={Exception: None, Later: None}), Later(5), 0).delay is None


def test_a_handler_decides_by_raising_retry_or_discard() -> None:
    policy = RetryPolicy()
    assert decide(policy, Retry(timedelta(minutes=1)), 0).delay == 60
    assert decide(policy, Retry(), 0).delay is not None
    assert decide(policy, Discard("no such user"), 0) == (None, "no such user")


def test_the_nearest_rule_counts() -> None:
    soon = RetryPolicy(max_attempts=5, min_delay=0.001, max_delay=0.001)
    policy = RetryPolicy(rules={OSError: None, ConnectionError: soon, Retry: soon})
    assert decide(policy, FileNotFoundError(), 0).delay is None
    assert decide(policy, ConnectionResetError(), 0).delay == pytest.approx(0.001, rel=0.5)
    assert decide(policy, KeyError(), 0).delay == pytest.approx(1, rel=0.5)
    assert decide(policy, Retry(), 4).delay is None


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"max_attempts": 0}, InvalidArgument),
        ({"max_attempts": 1.5}, InvalidArgumentType),
        ({"min_delay": 0}, InvalidArgument),
        ({"min_delay": "1"}, InvalidArgumentType),
        ({"max_delay": 0.5}, InvalidArgument),
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


def test_a_rule_of_none_is_dead_at_once_with_the_reason() -> None:
    policy = RetryPolicy(rules={ValueError: None})
    assert decide(policy, UnicodeError("bad"), 0) == (None, "UnicodeError: bad")


def test_a_rule_has_its_own_number_of_attempts() -> None:
    policy = RetryPolicy(max_attempts=2, rules={OSError: RetryPolicy(max_attempts=4)})
    assert decide(policy, OSError("x"), 2).delay is not None
    assert decide(policy, OSError("x"), 3) == (None, "OSError: x (attempt 4 of 4)")
    assert decide(policy, KeyError(1), 1).delay is None


def test_without_a_limit_a_message_is_retried_for_ever() -> None:
    policy = RetryPolicy(max_attempts=None, max_delay=timedelta(minutes=1))
    delay = decide(policy, OSError(), 10**6).delay
    assert delay is not None
    assert 30 <= delay <= 60


def test_an_error_that_is_no_exception_is_retried_too() -> None:
    assert decide(RetryPolicy(), SystemExit(3), 0).delay is not None
