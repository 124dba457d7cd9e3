"""The events that a subscriber emits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_vitess_messages import InvalidArgumentType, Subscriber
from sqla_vitess_messages.events import Dead, Delivered, Event, LeaseExpired, Settled
from sqla_vitess_messages.rows.epochs import GENERATION
from tests.backends import PULLING, enqueue, eventually

MakeQueue = Callable[..., type[Any]]
Subscribe = Callable[..., Subscriber[Any]]


def test_deliveries_and_settlements_are_emitted_when_they_have_committed(
    engine: Engine, queue: type[Any], subscribe: Subscribe
) -> None:
    events: list[Event] = []
    subscriber = subscribe(queue, on_event=events.append)
    name = queue.__table__.name
    for how in ("ack", "fail", "retry"):
        enqueue(engine, queue(body=how))
        message = subscriber.get(20)
        with Session(engine) as session:
            getattr(message, how)(session, *([60] if how == "retry" else []))
            session.rollback()
        assert not [e for e in events if isinstance(e, Settled) and e.message_id == message.id]
        with Session(engine) as session, session.begin():
            getattr(message, how)(session, *([60] if how == "retry" else []))

        def emitted(id_: int = message.id, how: str = how) -> list[Event]:
            settled = [e for e in events if isinstance(e, Settled)]
            return [e for e in settled if (e.message_id, e.how) == (id_, how)]

        [settled] = eventually(emitted)
        assert settled.queue == name
        assert 0 < settled.seconds < 60
        assert Delivered(name, message.id, 0, 0) in events
        assert (Dead(name, message.id, 0) in events) == (how == "fail")


@pytest.mark.parametrize("backend", PULLING, indirect=True, ids=lambda backend: backend.name)
def test_redeliveries_expired_leases_and_exhausted_attempts_are_emitted(
    engine: Engine, make_queue: MakeQueue, subscribe: Subscribe
) -> None:
    events: list[Event] = []
    queue = make_queue(ack_wait=1)
    subscriber = subscribe(queue, on_event=events.append, max_attempts=2)
    enqueue(engine, queue())
    message = subscriber.get(20)
    assert subscriber.get(20).epoch == 1
    assert not Delivered(queue.__table__.name, message.id, 0, 0).redelivered
    assert Delivered(queue.__table__.name, message.id, 1, 1).redelivered
    assert not Delivered(queue.__table__.name, message.id, GENERATION, 0).redelivered
    # LeaseExpired is emitted when the lease is certainly over, perhaps after the next delivery.
    counted = {Delivered: 2, LeaseExpired: 2, Dead: 1}
    eventually(lambda: Counter(type(e) for e in events if not isinstance(e, Settled)) == counted)
    assert Dead(queue.__table__.name, message.id, 2) in events


def test_an_error_in_on_event_disturbs_nothing(
    engine: Engine, queue: type[Any], subscribe: Subscribe, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_event: Event) -> None:
        raise LookupError

    subscriber = subscribe(queue, on_event=broken)
    enqueue(engine, queue(), queue())
    assert subscriber.get(20) is not None
    assert subscriber.get(20) is not None
    assert "on_event failed" in caplog.text


def test_on_event_has_to_be_callable(queue: type[Any], url: str) -> None:
    with pytest.raises(InvalidArgumentType, match="on_event='print'"):
        Subscriber(queue, url, on_event="print")  # type: ignore[arg-type]
