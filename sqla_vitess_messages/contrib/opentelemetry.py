"""Spans and metrics for OpenTelemetry, following its semantic conventions for messaging.

.. code-block:: python

    class Mail(MessageHeadersMixin, MessageQueueMixin, Base): ...

    trace_enqueued()                                  # once; a span for each message sent
    Worker(Subscriber(Mail, url, on_event=OpenTelemetryEvents()), traced(handler), sessions)

Source: https://opentelemetry.io/docs/specs/semconv/messaging/, version 1.30.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Mapper

from ..arguments import is_coroutine_function
from ..events import Dead, Delivered, Event, LeaseExpired, Reconnecting, Settled
from ..extras import needs_extra
from ..headers import MessageHeadersMixin
from ..mixin import MessageQueueMixin
from ..rows.message import queue_table
from ..rows.stats import STATES

with needs_extra("opentelemetry", "opentelemetry"):
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Link, Span, SpanKind, TracerProvider

__all__ = ["OpenTelemetryEvents", "observe_queues", "trace_enqueued", "traced"]

F = TypeVar("F", bound=Callable[..., Any])

SYSTEM = "sqla_vitess_messages"
"""``messaging.system``. None of the well-known values stands for a queue in a SQL database."""


def _attributes(queue: str, **more: Any) -> dict[str, Any]:
    attributes = {"messaging.system": SYSTEM, "messaging.destination.name": queue}
    return attributes | {f"messaging.{name.replace('_', '.', 1)}": v for name, v in more.items()}


def trace_enqueued(tracer_provider: TracerProvider | None = None) -> None:
    """Create a producer span for each message that a session inserts, and propagate its context.

    Only for models with :class:`.MessageHeadersMixin`: the context is stored in their ``headers``.
    Core and bulk inserts create no instances, and so no spans.

    :param tracer_provider: default: the global one. Of several calls the last one applies.
    """
    _tracers["send"] = trace.get_tracer(__name__, tracer_provider=tracer_provider)
    if not event.contains(MessageHeadersMixin, "before_insert", _before_insert):
        event.listen(MessageHeadersMixin, "before_insert", _before_insert, propagate=True)


_tracers: dict[str, trace.Tracer] = {}


def _before_insert(
    _mapper: Mapper[Any], _connection: Connection, message: MessageHeadersMixin
) -> None:
    assert isinstance(message, MessageQueueMixin)
    queue = queue_table(type(message)).name
    attributes = _attributes(
        queue, operation_name="send", operation_type="send", message_id=str(message.id)
    )
    span = _tracers["send"].start_span(
        f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes
    )
    carrier: dict[str, str] = dict(message.headers or {})
    with trace.use_span(span, end_on_exit=True):
        propagate.inject(carrier)
    message.headers = carrier


def traced(handler: F, tracer_provider: TracerProvider | None = None) -> F:
    """Wrap a worker's handler in a consumer span, linked to the spans that sent its messages.

    :param handler: a function or a coroutine function, for a message or for a batch.
    :param tracer_provider: default: the global one.
    """
    tracer = trace.get_tracer(__name__, tracer_provider=tracer_provider)

    @contextmanager
    def span(argument: Any) -> Iterator[Span]:
        batch = isinstance(argument, Sequence)
        messages: Sequence[MessageQueueMixin] = argument if batch else [argument]
        queue = queue_table(type(messages[0])).name
        attributes = _attributes(queue, operation_name="process", operation_type="process")
        if batch:
            attributes["messaging.batch.message_count"] = len(messages)
        else:
            attributes["messaging.message.id"] = str(messages[0].id)
        with tracer.start_as_current_span(
            f"process {queue}",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=list(_links(messages)),
        ) as started:
            try:
                yield started
            except Exception as error:
                started.set_attribute("error.type", type(error).__qualname__)
                raise

    if is_coroutine_function(handler):

        @wraps(handler)
        async def handle_async(argument: Any, session: Any) -> Any:
            with span(argument):
                return await handler(argument, session)

        return handle_async  # type: ignore[return-value]

    @wraps(handler)
    def handle(argument: Any, session: Any) -> Any:
        with span(argument):
            return handler(argument, session)

    return handle  # type: ignore[return-value]


def _links(messages: Iterable[MessageQueueMixin]) -> Iterator[Link]:
    for message in messages:
        headers = getattr(message, "headers", None) or {}
        context = trace.get_current_span(propagate.extract(headers)).get_span_context()
        if context.is_valid:
            yield Link(context, {"messaging.message.id": str(message.id)})


class OpenTelemetryEvents:
    """Counts the events of subscribers. One instance can be the ``on_event`` of several.

    :param meter_provider: default: the global one.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        meter = metrics.get_meter(__name__, meter_provider=meter_provider)
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages handed out."
        )
        self._duration = meter.create_histogram(
            "messaging.process.duration", "s", "Time from handing out a message to its settlement."
        )
        self._dead = meter.create_counter(
            "message_queue.dead", "{message}", "Messages that failed for good."
        )
        self._expired = meter.create_counter(
            "message_queue.leases.expired", "{lease}", "Leases that ended without a settlement."
        )
        self._lost = meter.create_counter(
            "message_queue.connections.lost", "{connection}", "Connections lost."
        )

    def __call__(self, event: Event) -> None:
        """Count an event."""
        attributes = _attributes(event.queue)
        if isinstance(event, Delivered):
            receive = {"operation_name": "receive", "operation_type": "receive"}
            redelivered = {"message_queue.redelivered": event.redelivered}
            self._consumed.add(1, _attributes(event.queue, **receive) | redelivered)
        elif isinstance(event, Settled):
            process = _attributes(event.queue, operation_name="process")
            self._duration.record(event.seconds, process | {"message_queue.settled": event.how})
        elif isinstance(event, Dead):
            self._dead.add(1, attributes)
        elif isinstance(event, LeaseExpired):
            self._expired.add(1, attributes)
        elif isinstance(event, Reconnecting):
            self._lost.add(1, attributes)


def observe_queues(
    engine: Engine, *models: type[MessageQueueMixin], meter_provider: MeterProvider | None = None
) -> None:
    """Observe the number of messages in each state, with one query for each queue.

    The queries are made whenever metrics are collected.

    :param engine: of the database that has the queues.
    :param models: the queues' classes.
    :param meter_provider: default: the global one.
    """

    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for model in models:
            with engine.connect() as connection:
                stats = model.stats(connection)
            attributes = _attributes(queue_table(model).name)
            for state in STATES:
                yield Observation(
                    getattr(stats, state), attributes | {"message_queue.state": state}
                )

    metrics.get_meter(__name__, meter_provider=meter_provider).create_observable_gauge(
        "message_queue.messages", [observe], "{message}", "Messages by state."
    )
