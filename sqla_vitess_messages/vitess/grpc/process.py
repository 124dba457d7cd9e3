"""gRPC doesn't survive a fork: its threads are gone, and its locks may be held."""

from __future__ import annotations

from ...errors import MessageQueueError
from ...forking import call_in_child

__all__ = ["check_process", "note_use"]


class _Process:
    """What is known of the use of gRPC in this process."""

    has_used_grpc = False
    can_use_grpc = True


def _forget_parent() -> None:
    _Process.can_use_grpc = not _Process.has_used_grpc


call_in_child(_forget_parent)


def note_use() -> None:
    """Note that gRPC is being used.

    :raises MessageQueueError: see :func:`check_process`.
    """
    check_process()
    _Process.has_used_grpc = True


def check_process() -> None:
    """Check that gRPC can be used in this process.

    :raises MessageQueueError: when it was forked after gRPC had been used: calls might wait for
        ever.
    """
    if not _Process.can_use_grpc:
        raise MessageQueueError(
            "gRPC can't be used in this process: it was forked after gRPC had been used. Fork "
            "before the first connection, or start processes by multiprocessing's 'spawn'"
        )
