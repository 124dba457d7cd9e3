"""Two subscribers with slow handlers and a backlog: leases held, redeliveries, fairness, rate.

.. code-block:: sh

    python -m benchmarks.slow_handlers pull=URL stream=URL

Each subscriber has 50 places and 25 handlers, each of which takes 20 ms and then acks in a
transaction of its own.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, cast

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from benchmarks.transports import enqueue, table
from sqla_vitess_messages import Subscriber, clock
from sqla_vitess_messages.transports import TransportName

MESSAGES, PLACES, HANDLERS, WORK = 20_000, 50, 25, 0.02


def handle(subscriber: Subscriber[Any], engine: Engine, epochs: list[int], end: float) -> None:
    """Settle messages until there is none for a second, or the time is over."""
    while time.monotonic() < end and (message := subscriber.get(1)) is not None:
        time.sleep(WORK)
        with Session(engine) as session, session.begin():
            message.ack(session)
        epochs.append(message.epoch)


def measure(url: str, transport: TransportName, seconds: float) -> list[str]:
    """Return the cells of one row."""
    with table(url, 30) as (filling, model, _):
        enqueue(filling, model, MESSAGES)
        engine = create_engine(url, pool_size=2 * HANDLERS + 1)
        columns = model.__table__.c
        leased = select(func.count()).where(
            columns.epoch > 0,
            columns.time_acked.is_(None),
            columns.time_next > clock.database_now(),
        )
        epochs: list[list[int]] = [[], []]
        with (
            Subscriber(model, url, max_concurrency=PLACES, transport=transport) as one,
            Subscriber(model, url, max_concurrency=PLACES, transport=transport) as two,
        ):
            started = time.monotonic()
            threads = [
                threading.Thread(target=handle, args=(sub, engine, seen, started + seconds))
                for sub, seen in zip((one, two), epochs, strict=True)
                for _ in range(HANDLERS)
            ]
            for thread in threads:
                thread.start()
            most = 0
            while any(thread.is_alive() for thread in threads):
                with engine.connect() as connection:
                    most = max(most, connection.scalar(leased) or 0)
                time.sleep(0.05)
            took = time.monotonic() - started
        done = len(epochs[0]) + len(epochs[1])
        engine.dispose()
        again = sum(epoch > 0 for seen in epochs for epoch in seen)
    share = min(map(len, epochs)) / max(done, 1)
    return [str(most), f"{again / done:.2%}", f"{share:.0%}", f"{done / took:,.0f}", f"{done:,}"]


def main() -> None:
    print("| transport | most leased | redelivered | smaller share | settled /s | settled |")
    print("|---|---|---|---|---|---|")
    for argument in sys.argv[1:]:
        name, _, url = argument.partition("=")
        cells = measure(url, cast("TransportName", name.rstrip("0123456789")), 120)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
