"""What becomes of a message whose handler failed: tried again later, or dead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from . import clock
from .errors import InvalidArgument, InvalidArgumentType

__all__ = ["Discard", "Retry", "RetryPolicy", "Verdict"]


class Retry(Exception):
    """Raised by a handler: roll back, and try the message again.

    It counts as an attempt.

    :param delay: seconds or a timedelta from now. Default: the policy's backoff.
    """

    def __init__(self, delay: float | timedelta | None = None) -> None:
        super().__init__("try again" if delay is None else f"try again in {delay}")
        self.delay = None if delay is None else clock.to_seconds(delay, "delay")


class Discard(Exception):
    """Raised by a handler: roll back, and don't try the message again. It is dead.

    :param reason: logged, and kept in the column ``fail_reason`` if the model has one.
    """

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)


class Verdict(NamedTuple):
    """What becomes of a message.

    :param delay: seconds until the next attempt; None if it is dead.
    :param reason: why it failed.
    """

    delay: float | None
    reason: str


@dataclass(frozen=True)
class RetryPolicy:
    """Tries again with a delay that doubles, and a random part of up to half of it.

    :param max_attempts: how often a message is handed out before it is dead; None for no limit.
        An attempt that ended without a settlement counts, such as one that killed the process.
    :param first_delay: seconds, or a timedelta, after the first attempt.
    :param longest_delay: seconds, or a timedelta.
    :param rules: another policy for some exceptions, or None: dead at once. Of several classes that
        an exception has, the nearest counts.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    max_attempts: int | None = 10
    first_delay: float | timedelta = 1.0
    longest_delay: float | timedelta = 3600.0
    rules: Mapping[type[Exception], RetryPolicy | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = self.max_attempts
        if most is not None:
            if isinstance(most, bool) or not isinstance(most, int):
                raise InvalidArgumentType(f"max_attempts={most!r}: expected an int or None")
            if most < 1:
                raise InvalidArgument(f"max_attempts={most}: expected at least 1, or None")
        first = clock.to_seconds(self.first_delay, "first_delay", minimum=0.001)
        clock.to_seconds(self.longest_delay, "longest_delay", minimum=first)
        for error, policy in self.rules.items():
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise InvalidArgumentType(f"rules: {error!r} is no exception class")
            if not (policy is None or isinstance(policy, RetryPolicy)):
                raise InvalidArgumentType(f"rules: {policy!r} is neither a RetryPolicy nor None")

    def is_used_up(self, epoch: int) -> bool:
        """Say whether a message was handed out as often as it may be.

        :param epoch: how often it was handed out before.
        """
        return self.max_attempts is not None and epoch >= self.max_attempts

    def judge(self, error: BaseException, epoch: int) -> Verdict:
        """Decide what becomes of a message.

        :param error: what its handler raised.
        :param epoch: how often it was handed out before.
        """
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, Discard):
            return Verdict(None, str(error))
        policy = self._policy_for(error)
        if policy is None:
            return Verdict(None, reason)
        if policy.is_used_up(epoch + 1):
            return Verdict(None, f"{reason} (attempt {epoch + 1} of {policy.max_attempts})")
        if isinstance(error, Retry) and error.delay is not None:
            return Verdict(error.delay, reason)
        return Verdict(policy._delay(epoch), reason)

    def _policy_for(self, error: BaseException) -> RetryPolicy | None:
        for cls in type(error).__mro__:
            if cls in self.rules:
                return self.rules[cls]
        return self

    def _delay(self, epoch: int) -> float:
        from tenacity import RetryCallState
        from tenacity.wait import wait_exponential, wait_random

        first = clock.to_seconds(self.first_delay, "first_delay")
        longest = clock.to_seconds(self.longest_delay, "longest_delay")
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        state.attempt_number = epoch + 1
        delay: float = wait_exponential(multiplier=first, max=longest)(state)
        return delay - wait_random(0, delay / 2)(state)
