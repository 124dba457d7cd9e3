"""What the tests with random histories have in common: a clock that they set, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import Engine, event

__all__ = ["HOUR", "Clock", "run_machine"]

HOUR = 3600


class Clock:
    """The time of this process and of the database, which the test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000 * 10**9

    def control(self, engine: Engine) -> None:
        """Give MySQL sessions this time; for SQLite the time comes from the process."""
        if engine.dialect.name == "sqlite":
            return

        def set_time(connection: Any, *_event: object) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET timestamp = %s", (Decimal(self.now) / 10**9,))

        event.listen(engine, "checkout", set_time)


def run_machine(make: Callable[[], RuleBasedStateMachine], max_examples: int = 40) -> None:
    """Run a state machine: so many histories of up to 40 steps each."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        make,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
