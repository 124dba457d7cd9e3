"""Receive and ack a backlog: one transaction per ack against grouped acks, in one run.

.. code-block:: sh

    python -m benchmarks.acks URL
"""

from __future__ import annotations

import sys
import time
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from benchmarks.transports import enqueue, table
from sqla_vitess_messages import Subscriber

EACH, GROUPED = 2_000, 20_000


def each(model: type[Any], url: str, count: int) -> float:
    """Return messages a second, each acked by an UPDATE in a transaction of its own."""
    engine = create_engine(url)
    with Subscriber(model, url, max_concurrency=1000) as subscriber:
        started = time.monotonic()
        for _ in range(count):
            with Session(engine) as session, session.begin():
                subscriber.get().ack(session)
        seconds = time.monotonic() - started
    engine.dispose()
    return count / seconds


def grouped(model: type[Any], url: str, count: int) -> float:
    """Return messages a second, acked in groups."""
    with Subscriber(model, url, max_concurrency=1000) as subscriber:
        started, done = time.monotonic(), 0
        while done < count:
            messages = subscriber.get_many(500)
            for message in messages:
                subscriber.ack(message)
            done += len(messages)
        subscriber.flush()
        return count / (time.monotonic() - started)


def main() -> None:
    url = sys.argv[1]
    with table(url) as (engine, model, _):
        enqueue(engine, model, EACH + GROUPED)
        single = each(model, url, EACH)
        many = grouped(model, url, GROUPED)
    print(f"one UPDATE per ack {single:,.0f}/s, grouped {many:,.0f}/s: {many / single:.1f} x")


if __name__ == "__main__":
    main()
