"""Whatever user code raises or returns, a worker goes on, and the message is retried or dead.

Each test runs with a Worker or an AsyncWorker, as its backend says.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from sqlalchemy import Engine, String, select, text
from sqlalchemy.orm import Session, mapped_column

from sqla_vitess_messages import Discard, Retry
from sqla_vitess_messages.events import Dead, Delivered, Event, Settled
from sqla_vitess_messages.rows import settle
from tests.backends import enqueue, eventually

MakeQueue = Callable[..., type[Any]]
Work = Callable[..., Any]


class WithoutText(Exception):
    def __str__(self) -> str:
        raise LookupError


class TextThatExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class TextThatIsNone(Exception):
    def __str__(self) -> Any:
        return None  # noqa: PLE0307


class DiscardWithoutText(Discard):
    def __str__(self) -> str:
        raise LookupError


class RetryWithoutDelay(Retry):
    def __init__(self) -> None:
        """Leave out what the base class sets."""


class RetryWithAnyDelay(Retry):
    def __init__(self, delay: Any) -> None:
        super().__init__()
        self.delay = delay


def raising(error: BaseException) -> Callable[[], object]:
    def call() -> None:
        raise error

    return call


async def coroutine() -> None:
    raise AssertionError("nobody awaits it")


async def several() -> Any:
    yield 1


FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "no text": (raising(WithoutText()), "WithoutText: without a text"),
    "a text that exits": (raising(TextThatExits()), "TextThatExits: without a text"),
    "a text that is none": (raising(TextThatIsNone()), "TextThatIsNone: without a text"),
    "discard without text": (raising(DiscardWithoutText()), "without a text"),
    "exit": (raising(SystemExit(3)), "SystemExit: 3"),
    "interrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "generator exit": (raising(GeneratorExit("x")), "GeneratorExit: x"),
    "stop iteration": (raising(StopIteration("x")), ""),  # With asyncio it is a RuntimeError.
    "stop async iteration": (raising(StopAsyncIteration("x")), "StopAsyncIteration: x"),
    "cancelled": (raising(asyncio.CancelledError("x")), "CancelledError: x"),
    "a base exception": (raising(BaseException("x")), "BaseException: x"),
    "a group": (raising(ExceptionGroup("x", [OSError(), OSError()])), "ExceptionGroup: x"),
    "a group of exits": (raising(BaseExceptionGroup("x", [SystemExit(3)])), "SystemExit: 3"),
    "a group of one": (raising(ExceptionGroup("x", [OSError("y")])), "OSError: y"),
    "a discard in groups": (
        raising(ExceptionGroup("x", [ExceptionGroup("y", [Discard("in groups")])])),
        "in groups",
    ),
    "two discards": (raising(ExceptionGroup("x", [Discard("one"), Discard("two")])), "one"),
    "one discard of two": (raising(ExceptionGroup("x", [Discard(), OSError()])), "ExceptionGroup"),
    "surrogates": (raising(ValueError("\ud800 \0 \x1f")), "ValueError: \\ud800 \\0 \x1f"),
    "long": (raising(ValueError("€" * 1_000_000)), "ValueError: €€€"),
    "retry without delay": (raising(RetryWithoutDelay()), "RetryWithoutDelay"),
    "a delay that is no number": (raising(RetryWithAnyDelay("x")), "RetryWithAnyDelay"),
    "a negative delay": (raising(RetryWithAnyDelay(-1)), "RetryWithAnyDelay"),
    "an endless delay": (raising(RetryWithAnyDelay(float("inf"))), "RetryWithAnyDelay"),
    "a coroutine": (coroutine, "InvalidArgumentType: the handler returned <coroutine"),
    "an async generator": (several, "InvalidArgumentType: the handler returned <async_gen"),
    "a generator": (
        lambda: (n for n in range(3)),
        "InvalidArgumentType: the handler returned <gen",
    ),
    "a future": (Future, "InvalidArgumentType: the handler returned <concurrent.futures"),
    "a map": (lambda: map(len, "x"), "InvalidArgumentType: the handler returned <map"),
}
AT_ONCE = ("discard without text", "a discard in groups", "two discards")
"""These are dead at the first attempt."""


@pytest.fixture
def queue(make_queue: MakeQueue) -> type[Any]:
    return make_queue(None, {"fail_reason": mapped_column(String(80))}, ack_wait=20)


def reasons(engine: Engine, queue: type[Any]) -> dict[str, str]:
    """Return the reasons of dead messages."""
    with Session(engine) as session:
        return {message.body: message.fail_reason for message in queue.dead(session)}


def acked(engine: Engine, queue: type[Any]) -> int:
    with Session(engine) as session:
        found: int = queue.stats(session).acked
        return found


@pytest.fixture
def unreported_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tracebacks with lone surrogates from pytest-xdist, which can't encode them."""
    monkeypatch.setattr(logging.getLogger("sqla_vitess_messages"), "propagate", False)


@pytest.mark.parametrize("batch_size", [None, 100])
@pytest.mark.usefixtures("unreported_log")
def test_whatever_a_handler_raises_or_returns_the_message_dies_by_the_policy(
    engine: Engine, queue: type[Any], work: Work, batch_size: int | None
) -> None:
    attempts: Counter[str] = Counter()

    def handle(message: Any, _session: Session) -> object:
        attempts[message.body] += 1
        return None if message.body == "good" else FAILURES[message.body][0]()

    def handle_many(messages: list[Any], session: Session) -> object:
        if len(messages) == 1:
            return handle(messages[0], session)
        return FAILURES[messages[0].body][0]() if messages[0].body in FAILURES else None

    enqueue(engine, *(queue(body=body) for body in FAILURES))
    handler = handle if batch_size is None else handle_many
    worker = work(queue, handler, concurrency=2, batch_size=batch_size)
    eventually(lambda: len(reasons(engine, queue)) == len(FAILURES), within=40)
    enqueue(engine, *(queue(body="good") for _ in range(4)))
    eventually(lambda: acked(engine, queue) == 4)
    assert worker.running == 2
    for body, reason in reasons(engine, queue).items():
        assert reason.startswith(FAILURES[body][1]), (body, reason)
        assert len(reason) <= 80
    bad = {body: count for body, count in attempts.items() if body != "good"}
    assert bad == {body: 1 if body in AT_ONCE else 2 for body in FAILURES}


def test_a_retry_alone_in_a_group_counts_as_one(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    def handle(message: Any, _session: Session) -> None:
        if message.epoch == 0:
            raise ExceptionGroup("of a TaskGroup", [Retry(3600)])

    enqueue(engine, queue(body="later"))
    work(queue, handle)

    def is_later() -> bool:
        with engine.connect() as connection:
            found = connection.execute(select(queue.__table__)).one()
        # The lease alone would last about 20 s.
        return bool(found.time_next - found.time_created > 3000 * 10**9)

    eventually(is_later)


RAISED: list[BaseException] = [
    LookupError("x"),
    WithoutText(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
    BaseException("x"),
]


def test_whatever_on_event_raises_all_later_events_arrive_and_receiving_goes_on(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        raise RAISED[len(events) % len(RAISED)]

    def handle(message: Any, _session: Session) -> None:
        if message.body == "bad":
            raise Discard

    enqueue(engine, *(queue(body="bad" if n % 4 == 3 else "good") for n in range(16)))
    work(queue, handle, subscriber_options={"on_event": on_event})
    expected = {Delivered: 16, Settled: 16, Dead: 4}
    eventually(lambda: Counter(type(e) for e in events) == expected, within=20)
    enqueue(engine, queue(body="good"))
    eventually(lambda: acked(engine, queue) == 13)


def test_whatever_a_filter_of_the_log_raises_verdicts_are_written_and_workers_go_on(
    engine: Engine, queue: type[Any], work: Work
) -> None:
    def handle(message: Any, _session: Session) -> None:
        if message.body == "bad":
            raise Discard("no")

    def refuse(_record: logging.LogRecord) -> bool:
        raise LookupError("no request")

    enqueue(engine, *(queue(body=body) for body in ("bad", "good", "bad", "good")))
    handler = logging.StreamHandler()
    handler.addFilter(refuse)
    log = logging.getLogger("sqla_vitess_messages")
    log.addHandler(handler)
    try:
        work(queue, handle)
        eventually(lambda: acked(engine, queue) == 2)
        eventually(lambda: reasons(engine, queue) == {"bad": "no"})
    finally:
        log.removeHandler(handler)


def test_a_deadlock_of_the_verdict_is_repeated(
    engine: Engine, queue: type[Any], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts: list[str | None] = []
    fail = settle.fail

    def meet_deadlocks(model: Any, session: Any, leases: Any, reason: str | None) -> None:
        verdicts.append(reason)
        fail(model, session, leases, reason)
        if len(verdicts) < 4:
            dialect = session.get_bind().dialect
            deadlock = dialect.loaded_dbapi.OperationalError(1213, "Deadlock found")
            do_execute, statement = dialect.do_execute, "SELECT 'met a deadlock'"

            def raise_it(cursor: Any, executed: str, *arguments: Any) -> None:
                if executed == statement:  # Other threads use the dialect, too.
                    raise deadlock
                do_execute(cursor, executed, *arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(dialect, "do_execute", raise_it)
                session.connection().execute(text(statement))

    def handle(_message: Any, _session: Session) -> None:
        raise Discard("no")

    monkeypatch.setattr(settle, "fail", meet_deadlocks)
    enqueue(engine, queue(body="bad"))
    work(queue, handle)
    eventually(lambda: reasons(engine, queue) == {"bad": "no"})
    assert verdicts == ["no"] * 4
