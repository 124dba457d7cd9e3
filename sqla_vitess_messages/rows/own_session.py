"""The session by which the library loads messages: that of a subscriber, and not of the user."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.orm import Session

__all__ = ["OwnSession"]


class OwnSession(Session):
    """A session in the transaction of a connection, without the listeners to all sessions.

    They are for the user's own sessions: they may hide rows, or need a request. A message that was
    leased has to be loaded all the same.
    """

    _sa_propagate_class_events = False  # As SQLAlchemy has it for copies of engines.

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, autoflush=False, join_transaction_mode="rollback_only")
