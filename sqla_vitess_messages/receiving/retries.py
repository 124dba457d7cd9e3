"""Decide about a message whose handler failed: it is retried later, or dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType
from ..logs import get_logger
from ..rows.epochs import MAX_ATTEMPTS
from ..rows.reasons import describe_error, text_of
from ..shown import shown

__all__ = [
    "Discard",
    "Retry",
    "RetryDecision",
    "RetryPolicy",
    "decide",
    "is_exhausted",
    "only_error",
]

log = get_logger(__name__)


class Retry(Exception):
    """Raised by a handler: roll back, and retry the message. It counts as an attempt.

    :param delay: seconds or a timedelta from now. Default: the policy's backoff.
    """

    def __init__(self, delay: float | timedelta | None = None) -> None:
        self.delay = None if delay is None else clock.to_seconds(delay, "delay")
        super().__init__("try again" if delay is None else f"try again in {self.delay} s")


class Discard(Exception):
    """Raised by a handler: roll back, and don't retry the message. It is dead.

    :param reason: logged, and kept in the column ``fail_reason`` if the model has one.
    """

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)


class RetryDecision(NamedTuple):
    """Whether and when a message is retried.

    :param delay: seconds until the next attempt; None if it is dead.
    :param reason: why it failed.
    """

    delay: float | None
    reason: str


@dataclass(frozen=True)
class RetryPolicy:
    """Retries with a delay that doubles at each attempt, less a random part of up to half of it.

    :param max_attempts: how often a message is handed out before it is dead; None for no limit.
        An attempt that ended without a settlement counts, such as one that killed the process: of
        such a message, the largest limit of the policy and its rules is the one that holds.
    :param min_delay: seconds, or a timedelta, after the first attempt.
    :param max_delay: the longest delay, in seconds or as a timedelta.
    :param rules: the policy for an exception class and those below it, or None: such a message is
        dead at once. Of several classes that match an exception, the most specific one counts. A
        rule for ``Exception`` itself doesn't concern :class:`Retry`.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    max_attempts: int | None = 10
    min_delay: float | timedelta = 1.0
    max_delay: float | timedelta = 3600.0
    rules: Mapping[type[Exception], RetryPolicy | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = self.max_attempts
        if most is not None:
            if isinstance(most, bool) or not isinstance(most, int):
                raise InvalidArgumentType(f"max_attempts={shown(most)}: expected an int or None")
            if not 1 <= most <= MAX_ATTEMPTS:
                raise InvalidArgument(
                    f"max_attempts={most}: expected from 1 to {MAX_ATTEMPTS}, or None"
                )
        first = clock.to_seconds(self.min_delay, "min_delay", minimum=0.001)
        clock.to_seconds(self.max_delay, "max_delay", minimum=first)
        # A copy: a mapping of the user's own could fail when a message is to be judged.
        object.__setattr__(self, "rules", dict(self.rules))
        for error, policy in self.rules.items():
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise InvalidArgumentType(f"rules: {shown(error)} is no exception class")
            if not (policy is None or isinstance(policy, RetryPolicy)):
                raise InvalidArgumentType(
                    f"rules: {shown(policy)} is neither a RetryPolicy nor None"
                )


def is_exhausted(policy: RetryPolicy, attempts: int) -> bool:
    """Return whether a message was handed out as often as the policy, or any of its rules, allows.

    :param attempts: how often it was handed out before.
    """
    rules = (rule for rule in policy.rules.values() if rule is not None)
    return all(_is_exhausted_by(one, attempts) for one in (policy, *rules))


def _is_exhausted_by(rule: RetryPolicy, attempts: int) -> bool:
    return rule.max_attempts is not None and attempts >= rule.max_attempts


def decide(policy: RetryPolicy, error: BaseException, attempts: int) -> RetryDecision:
    """Return whether and when a message is retried.

    :param error: the exception that its handler raised.
    :param attempts: how often it was handed out before.
    """
    error = only_error(error)
    if isinstance(error, Discard):
        return RetryDecision(None, text_of(error))
    reason = describe_error(error)
    rule = _policy_for(policy, error)
    if rule is None:
        return RetryDecision(None, reason)
    if _is_exhausted_by(rule, attempts + 1):
        return RetryDecision(None, f"{reason} (attempt {attempts + 1} of {rule.max_attempts})")
    delay = _chosen_delay(error)
    return RetryDecision(_delay(rule, attempts) if delay is None else delay, reason)


def only_error(error: BaseException) -> BaseException:
    """Return the one exception of a group, as a TaskGroup raises it, or else the error itself.

    Several that are all a :class:`Discard` are one.
    """
    raised = list(_members(error))
    if len(raised) == 1 or all(isinstance(one, Discard) for one in raised):
        return raised[0]
    return error


def _members(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _members(one)
    else:
        yield error


def _policy_for(policy: RetryPolicy, error: BaseException) -> RetryPolicy | None:
    for cls in type(error).__mro__:
        if cls is Exception and isinstance(error, Retry):
            break  # A rule for all exceptions is about failures.
        if cls in policy.rules:
            return policy.rules[cls]
    return policy


def _chosen_delay(error: BaseException) -> float | None:
    """Return the delay that a Retry asks for: a subclass may not have set it, or to anything."""
    if not isinstance(error, Retry):
        return None
    try:
        return None if error.delay is None else clock.to_seconds(error.delay, "delay")
    except BaseException:  # The attribute may be user code.
        log.exception("the delay of a Retry can't be used; the policy's is used instead")
        return None


def _delay(policy: RetryPolicy, attempts: int) -> float:
    from tenacity import RetryCallState
    from tenacity.wait import wait_exponential, wait_random

    shortest = clock.to_seconds(policy.min_delay, "min_delay")
    longest = clock.to_seconds(policy.max_delay, "max_delay")
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempts + 1
    delay: float = wait_exponential(multiplier=shortest, max=longest)(state)
    return delay - wait_random(0, delay / 2)(state)
