"""The log of a process that works for a shell: a line that names the queue and the message."""

from __future__ import annotations

import logging

__all__ = ["log_to_terminal"]

_EXTRAS = ("queue", "message_id", "epoch")
"""What the library's records have in addition to their text."""


class LineFormatter(logging.Formatter):
    """Formats records, followed by those of :data:`_EXTRAS` that they have."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # Of the base class.
        """Return the line of a record, which may be followed by a traceback."""
        found = [f"{name}={getattr(record, name)}" for name in _EXTRAS if hasattr(record, name)]
        line = super().formatMessage(record)
        return f"{line} [{' '.join(found)}]" if found else line


def log_to_terminal() -> None:
    """Log at INFO to the standard error, unless the program has configured its log."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        LineFormatter("%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
