"""Log without ever failing: an application's filters and record factories are user code."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["GuardedLogger", "get_logger"]


def get_logger(name: str) -> GuardedLogger:
    """Return the logger of a module."""
    return GuardedLogger(logging.getLogger(name))


class GuardedLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that prints an exception that logging raises, as handlers of records do.

    Its extra fields take precedence over those that a record factory has set. Python's own refuses
    a field that the record has already.
    """

    def log(  # type: ignore[override]
        self,
        level: int,
        msg: str,
        *args: object,
        exc_info: bool | BaseException = False,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log a message, as :meth:`logging.Logger.log`."""
        try:
            if self.isEnabledFor(level):
                self.logger.handle(self._record(level, msg, args, exc_info, extra or {}))
        except Exception:  # noqa: BLE001  # User code may raise anything.
            if logging.raiseExceptions:
                with suppress(Exception):  # There may be no stderr.
                    traceback.print_exc()

    def _record(
        self,
        level: int,
        msg: str,
        args: tuple[object, ...],
        exc_info: bool | BaseException,
        extra: Mapping[str, object],
    ) -> logging.LogRecord:
        # Three calls above the logging module's own: this one, log, and the caller.
        path, line, function, _stack = self.logger.findCaller(stacklevel=3)
        error = exc_info if isinstance(exc_info, BaseException) else sys.exception()
        info = (type(error), error, error.__traceback__) if exc_info and error else None
        record = self.logger.makeRecord(
            self.logger.name, level, path, line, msg, args, info, function
        )
        vars(record).update(extra)
        return record
