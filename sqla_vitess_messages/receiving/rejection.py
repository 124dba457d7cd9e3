"""Settle messages that are never handed out: of too many attempts, or impossible to load."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import Engine, Table

from ..errors import LeaseLost
from ..logs import get_logger
from ..rows.lease import Lease, lease_of
from ..rows.message import Message, queue_table
from ..rows.reasons import describe_error
from ..table.options import queue_options
from ..transports.base import Unloadable
from .batcher import Change, PendingSettlement, settle_together
from .retries import RetryDecision, RetryPolicy, decide

__all__ = ["Reject", "Rejection", "queue_policy", "reject", "settle_rejected"]

M = TypeVar("M", bound=Message)

log = get_logger(__name__)

MAX_DELAY = 3600.0
"""The longest delay, in seconds, of a queue without a ``max_backoff``."""


class Rejection(NamedTuple):
    """A message that is not handed out, and what becomes of it."""

    lease: Lease
    decision: RetryDecision


class Reject(Protocol[M]):
    """Returns the messages that may be handed out, and the rejections of the others."""

    def __call__(
        self, messages: Sequence[M], unloadable: Sequence[Unloadable], /
    ) -> tuple[list[M], list[Rejection]]: ...


def queue_policy(table: Table, max_attempts: int | None) -> RetryPolicy:
    """Return a policy with the backoff of a queue."""
    options = queue_options(table)
    longest = options.max_backoff or max(MAX_DELAY, options.first_backoff)
    return RetryPolicy(
        max_attempts=max_attempts, min_delay=options.first_backoff, max_delay=longest
    )


def reject(
    messages: Sequence[M],
    unloadable: Sequence[Unloadable],
    *,
    policy: RetryPolicy,
    max_attempts: int | None,
) -> tuple[list[M], list[Rejection]]:
    """Return the messages that may be handed out, and the rejections of the others.

    :param policy: whether and when a message that can't be loaded is retried.
    :param max_attempts: how often a message may have been handed out; None for no limit.
    """
    rejected = [_reject_unloadable(one, policy, max_attempts) for one in unloadable]
    accepted: list[M] = []
    for message in messages:
        lease = lease_of(message)
        if lease is not None and max_attempts is not None and lease.attempts >= max_attempts:
            rejected.append(_reject_exhausted(lease, max_attempts))
        else:
            accepted.append(message)
    return accepted, rejected


def _reject_exhausted(lease: Lease, max_attempts: int) -> Rejection:
    """Reject a message that was handed out as often as it may be."""
    reason = f"handed out {max_attempts} times and never settled"
    return Rejection(lease, RetryDecision(None, reason))


def _reject_unloadable(
    unloadable: Unloadable, policy: RetryPolicy, max_attempts: int | None
) -> Rejection:
    """Reject a message that can't be loaded: it is as if its handler had raised the error.

    :param max_attempts: the subscriber's own limit, which holds whatever the policy says.
    """
    lease, error = unloadable
    decision = decide(policy, error, lease.attempts)
    exhausted = max_attempts is not None and lease.attempts + 1 >= max_attempts
    return Rejection(
        lease,
        RetryDecision(None if exhausted else decision.delay, f"can't be loaded: {decision.reason}"),
    )


def settle_rejected(
    model: type[Message], engine: Engine, rejections: Sequence[Rejection]
) -> list[Lease]:
    """Retry or fail messages, and return the leases of those that are dead now."""
    queue = queue_table(model).name
    pending = [_pending(rejection) for rejection in rejections]
    settle_together(model, engine, [settlement for settlement, _future in pending])
    dead: list[Lease] = []
    for (lease, decision), (_settlement, future) in zip(rejections, pending, strict=True):
        extra = {"queue": queue, "message_id": lease.message_id, "epoch": lease.epoch}
        error = future.exception()
        if isinstance(error, LeaseLost):
            log.info("message %d was handed out again meanwhile", lease.message_id, extra=extra)
        elif error is not None:
            log.warning(
                "message %d is not settled and comes back after its lease: %s",
                lease.message_id, describe_error(error), extra=extra,
            )  # fmt: skip
        elif decision.delay is None:
            dead.append(lease)
        else:
            log.warning(
                "message %d comes back in %.1f s: %s",
                lease.message_id, decision.delay, decision.reason, extra=extra,
            )  # fmt: skip
    return dead


def _pending(rejection: Rejection) -> tuple[PendingSettlement, Future[None]]:
    lease, (delay, reason) = rejection
    change = Change("fail" if delay is None else "retry", reason, delay)
    future: Future[None] = Future()
    return PendingSettlement(lease, change, future), future
