"""What a subscriber sends again and again is compiled once: SQLAlchemy finds it in its cache."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.backends import PULLING, Backend, enqueue

pytestmark = pytest.mark.parametrize(
    "backend", PULLING, indirect=True, ids=lambda backend: backend.name
)

LOGGER = "sqlalchemy.engine.Engine"


@pytest.fixture(autouse=True)
def _log_statements() -> Iterator[None]:
    """Have engines log their statements, and whether each was in the cache."""
    logger = logging.getLogger(LOGGER)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)


def _settle_one_in_each_way(engine: Engine, queue: type[Any], subscriber: Any) -> None:
    for settle in (subscriber.ack, subscriber.retry, subscriber.fail):
        enqueue(engine, queue(body="x"))
        settle(subscriber.get(20)).result(20)


@pytest.mark.parametrize("layout", ["portable", "minimal"])
def test_pulls_and_settlements_are_compiled_once(
    engine: Engine,
    make_queue: Callable[..., type[Any]],
    subscribe: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    backend: Backend,
    layout: str,
) -> None:
    queue = make_queue(layout=layout, ack_wait=60, min_backoff=60)
    subscriber = subscribe(queue)
    for _ in range(3):
        _settle_one_in_each_way(engine, queue, subscriber)
    logged = [r.getMessage() for r in caplog.records if r.name == LOGGER]
    assert any(line.startswith("[cached since") for line in logged)
    compiled = Counter(
        statement
        for statement, note in pairwise(logged)
        if note.startswith(("[generated", "[no key")) and queue.__tablename__ in statement
    )
    engines = 3 if backend.server == "sharded" else 1  # One for the keyspace, one for each shard.
    assert max(compiled.values()) <= engines
