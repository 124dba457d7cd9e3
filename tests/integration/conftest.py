"""Fixtures of the tests with random histories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from sqla_vitess_messages import clock
from sqla_vitess_messages.transports.engines import dedicated_engine
from tests.state_machines import Clock


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Clock:
    """The clock of the process and of all engines in the test."""
    moved = Clock()
    monkeypatch.setattr(clock, "wall_clock", lambda: moved.now)
    moved.control(engine)
    return moved


@pytest.fixture
def receivers(url: str, moved: Clock) -> Iterator[list[Engine]]:
    """The engines of two receiving processes."""
    engines = [dedicated_engine(url) for _ in range(2)]
    for engine in engines:
        moved.control(engine)
    yield engines
    for engine in engines:
        engine.dispose()
