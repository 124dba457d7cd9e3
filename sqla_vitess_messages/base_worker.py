"""What the worker with threads and the one for asyncio do in the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Generic

from . import clock
from .base_subscriber import BaseSubscriber, M, check_count
from .ddl import OPTIONS_KEY, queue_table
from .errors import InvalidArgumentType
from .retries import RetryPolicy, Verdict

__all__ = ["BaseWorker"]

log = logging.getLogger(__name__)


class BaseWorker(Generic[M]):
    """Checks its arguments, and decides what becomes of a message."""

    def __init__(
        self,
        subscriber: BaseSubscriber[M],
        handler: Callable[..., Any],
        session_factory: Callable[[], Any],
        *,
        concurrency: int,
        retry: RetryPolicy | None,
        batch_size: int | None,
        shutdown_timeout: float | timedelta,
    ) -> None:
        for name, value in (("handler", handler), ("session_factory", session_factory)):
            if not callable(value):
                raise InvalidArgumentType(f"{name}={value!r}: expected a callable")
        if not (retry is None or isinstance(retry, RetryPolicy)):
            raise InvalidArgumentType(f"retry={retry!r}: expected a RetryPolicy")
        check_count("concurrency", concurrency, 1000)
        if batch_size is not None:
            check_count("batch_size", batch_size, 500)
        self.concurrency = concurrency
        self._handler = handler
        self._session_factory = session_factory
        self._retry = retry or RetryPolicy()
        self._batch_size = batch_size
        self._patience = clock.to_seconds(shutdown_timeout, "shutdown_timeout")
        self._model = subscriber.model
        table = queue_table(self._model)
        self._queue = table.name
        self._ack_wait: float = table.info[OPTIONS_KEY].ack_wait
        self._signals = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._queue!r}, {self.concurrency} at a time>"

    def _argument(self, messages: Sequence[M]) -> Any:
        """Return what the handler takes."""
        return messages[0] if self._batch_size is None else list(messages)

    def _judge_unhandled(self, message: M) -> Verdict | None:
        """Let a message die that was handed out too often, without another attempt."""
        if not self._retry.is_used_up(message.epoch):
            return None
        return Verdict(None, f"handed out {message.epoch} times and never settled")

    def _judge(self, message: M, error: BaseException) -> Verdict:
        verdict = self._retry.judge(error, message.epoch)
        log.info("rolled back: %s", verdict.reason, extra=self._extra(message), exc_info=error)
        return verdict

    def _note_batch_error(self, error: BaseException) -> None:
        extra = {"queue": self._queue}
        log.info("a batch failed, each follows alone: %s", error, extra=extra)

    def _note_lost(self, message: M, error: Exception) -> None:
        log.warning("others have the message: %s", error, extra=self._extra(message))

    def _note_unsettled(self, message: M, error: Exception) -> None:
        extra = self._extra(message)
        log.error("not settled; it comes back later", extra=extra, exc_info=error)

    def _note_unfinished(self, running: int) -> None:
        log.warning(
            "%d handlers did not finish; their messages come back", running,
            extra={"queue": self._queue},
        )  # fmt: skip

    def _extra(self, message: M) -> dict[str, object]:
        return {"queue": self._queue, "message_id": message.id, "epoch": message.epoch}
