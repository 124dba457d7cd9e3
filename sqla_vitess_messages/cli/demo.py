"""A demonstration: orders are enqueued in transactions, settled in others, and counted.

One process enqueues and rolls some transactions back. Two processes receive; each payment commits
together with the ack of its message. One of the two is killed half-way, and its messages are
redelivered. The last orders come slowly, and show the latency.
"""

from __future__ import annotations

import logging
import multiprocessing
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid
from sqlalchemy import BigInteger, Engine, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from .. import clock
from ..errors import AlreadySettled
from ..mixin import MessageQueueMixin
from ..receiving.subscriber import Subscriber
from ..rows.enqueue import random_id
from ..rows.states import DEAD
from ..table.options import QueueOptions
from ..transports.choice import TransportName
from ..vitess.server import is_sqlite

__all__ = ["run"]

ROLLBACK_EVERY = 10
"""One of this many transactions that place an order is rolled back."""

REFUSE_EVERY = 100
"""One of this many orders can't be paid, and its message fails."""

PACED = 60
"""The last orders, half of them at most, come at :data:`RATE`, so that there is no backlog."""

RATE = 20
"""Orders a second."""

MEASURED = 40
"""The last so many orders show the latency."""

COUNT_POLL_INTERVAL = 0.2
"""Seconds between two queries of the counts."""

STALL_TIMEOUT = 60.0
"""Seconds without progress after which the demonstration gives up."""


@dataclass(frozen=True)
class _Job:
    """The parameters of one demonstration, sent to each of its processes."""

    url: str = field(repr=False)
    transport: TransportName
    messages: int
    suffix: str

    @property
    def paced(self) -> int:
        return min(PACED, self.messages // 2)


class _Tables:
    """The models of one demonstration, with unique table names."""

    def __init__(self, suffix: str) -> None:
        class Base(DeclarativeBase):
            pass

        class Order(Base):
            __tablename__ = f"demo_order_{suffix}"
            number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

        class OrderPlaced(MessageQueueMixin, Base):
            __tablename__ = f"demo_order_placed_{suffix}"
            __queue__ = QueueOptions(ack_wait=2, min_backoff=0.5, poller_interval=0.5)
            number: Mapped[int]

        class Payment(Base):
            """The effect of a message. Only the ack prevents a second one for the same order."""

            __tablename__ = f"demo_payment_{suffix}"
            id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
            number: Mapped[int]
            attempts: Mapped[int]
            latency: Mapped[int] = mapped_column(BigInteger)

        self.metadata = Base.metadata
        self.order = Order
        self.message = OrderPlaced
        self.payment = Payment


def run(url: str, messages: int, transport: TransportName = "auto") -> bool:
    """Run the demonstration and print its counts.

    :param url: of the database.
    :param messages: how many to enqueue.
    :param transport: of the consumers.
    :return: whether every count is right.
    """
    console = Console()
    job = _Job(url, transport, messages, secrets.token_hex(4))
    tables = _Tables(job.suffix)
    engine = _engine(url)
    try:
        tables.metadata.create_all(engine)
        with Subscriber(tables.message, url, transport=transport):
            pass  # Raises here, not in the processes, if the database doesn't support it.
        with _processes(job) as (producer, consumers):
            started = time.monotonic()
            _watch(console, engine, tables, job, producer, consumers)
            seconds = time.monotonic() - started - job.paced / RATE
        return _print_report(console, engine, tables, job, seconds)
    finally:
        tables.metadata.drop_all(engine)
        engine.dispose()


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if is_sqlite(engine.dialect):

        @event.listens_for(engine, "connect")
        def _share_among_processes(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA busy_timeout=30000")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def _enqueue(job: _Job) -> None:
    """Place the orders, each in a transaction with its message."""
    tables = _Tables(job.suffix)
    engine = _engine(job.url)
    number = committed = 0
    while committed < job.messages:
        number += 1
        if committed >= job.messages - job.paced:
            time.sleep(1 / RATE)
        with Session(engine) as session:
            session.add(tables.order(number=number))
            session.add(tables.message(number=number))
            session.flush()
            if number % ROLLBACK_EVERY == 0:
                session.rollback()
            else:
                session.commit()
                committed += 1


def _settle(job: _Job, receiving: Event) -> None:
    """Pay the orders until killed.

    :param receiving: set when this process is ready to receive.
    """
    logging.disable(logging.WARNING)  # Failed messages are logged; the table of counts has them.
    tables = _Tables(job.suffix)
    engine = _engine(job.url)
    with Subscriber(
        tables.message, job.url, max_concurrency=50, transport=job.transport
    ) as subscriber:
        receiving.set()
        for message in subscriber:
            latency = clock.now() - message.time_created
            try:
                with Session(engine) as session, session.begin():
                    if message.number % REFUSE_EVERY == 1:
                        message.fail(session)
                        continue
                    session.add(
                        tables.payment(
                            id=random_id(),
                            number=message.number,
                            attempts=message.attempts,
                            latency=latency,
                        )
                    )
                    message.ack(session)
            except AlreadySettled:
                continue  # Another process was faster, and the payment is rolled back.


@contextmanager
def _processes(job: _Job) -> Iterator[tuple[BaseProcess, list[BaseProcess]]]:
    """Start all processes, the producer as soon as both consumers receive."""
    context = multiprocessing.get_context("spawn")
    producer = context.Process(target=_enqueue, args=(job,), daemon=True)
    receiving = [context.Event() for _ in range(2)]
    consumers: list[BaseProcess] = [
        context.Process(target=_settle, args=(job, event), daemon=True) for event in receiving
    ]
    try:
        for consumer in consumers:
            consumer.start()
        for consumer, event in zip(consumers, receiving, strict=True):
            while consumer.is_alive() and not event.wait(COUNT_POLL_INTERVAL):
                pass
        producer.start()
        yield producer, consumers
    finally:
        for process in (*consumers, producer):
            if process.pid is not None:
                process.kill()
                process.join()


def _watch(
    console: Console,
    engine: Engine,
    tables: _Tables,
    job: _Job,
    producer: BaseProcess,
    consumers: list[BaseProcess],
) -> None:
    """Show the progress, kill a consumer after a quarter, and return when all are settled."""
    victim, survivor = consumers
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    last_change, settled = time.monotonic(), 0
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("settled", total=job.messages)
        while settled < job.messages:
            time.sleep(COUNT_POLL_INTERVAL)
            counts = _counts(engine, tables)
            before, settled = settled, counts["acked"] + counts["dead"]
            progress.update(task, completed=settled)
            if settled >= job.messages // 4 and victim.is_alive():
                victim.kill()
                victim.join()
                progress.console.print("one of the two receiving processes was killed")
            now = time.monotonic()
            last_change = now if settled > before or producer.is_alive() else last_change
            if now - last_change > STALL_TIMEOUT or not survivor.is_alive():
                progress.console.print("no progress any more: giving up", style="red")
                return


def _counts(engine: Engine, tables: _Tables) -> dict[str, int]:
    columns = tables.message.__table__.c
    counted = {
        "enqueued": select(func.count()).select_from(tables.message),
        "acked": select(func.count()).where(columns.time_acked.is_not(None)),
        "dead": select(func.count()).where(columns.time_next == DEAD),
    }
    with engine.connect() as connection:
        return {name: connection.execute(query).scalar_one() for name, query in counted.items()}


def _print_report(
    console: Console, engine: Engine, tables: _Tables, job: _Job, seconds: float
) -> bool:
    counts = _counts(engine, tables)
    with Session(engine) as session:
        payments = session.execute(
            select(tables.payment.number, tables.payment.attempts, tables.payment.latency).order_by(
                tables.payment.number
            )
        ).all()
        orders = set(session.scalars(select(tables.order.number)))
        refused = [message.attempts for message in tables.message.dead(session, job.messages)]
    tries = [payment.attempts + 1 for payment in payments] + refused
    latencies = [payment.latency / 1e6 for payment in payments[-MEASURED:]]
    percentiles = statistics.quantiles(latencies or [0, 0], n=100)
    last = max(orders, default=0)
    rolled_back = last - len(orders)
    dead = sum(number % REFUSE_EVERY == 1 for number in orders)
    once = len({payment.number for payment in payments})
    rows: list[tuple[str, str, bool]] = [
        ("enqueued", str(counts["enqueued"]), counts["enqueued"] == len(orders) == job.messages),
        ("rolled back", str(rolled_back), rolled_back == last // ROLLBACK_EVERY),
        ("delivered", str(sum(tries)), sum(tries) >= job.messages),
        ("redelivered", str(sum(tries) - len(tries)), True),
        ("acked", str(counts["acked"]), counts["acked"] == job.messages - dead),
        ("dead", str(counts["dead"]), counts["dead"] == dead),
        ("effects applied exactly once", str(once), once == len(payments) == counts["acked"]),
        ("rate before", f"{(job.messages - job.paced) / seconds:,.0f} messages/s", True),
        (f"latency at {RATE}/s, p50", f"{percentiles[49]:,.1f} ms", True),
        (f"latency at {RATE}/s, p99", f"{percentiles[98]:,.1f} ms", True),
    ]
    grid = Grid("", "count", "right", title="Result")
    for name, value, right in rows:
        grid.add_row(name, value, "yes" if right else "[red]no")
    console.print(grid)
    return all(right for *_, right in rows)
