"""The integrations with Prometheus and OpenTelemetry, using the real libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, String, create_engine, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    sessionmaker,
)

from sqla_vitess_messages import (
    InvalidArgumentType,
    MessageQueueMixin,
    QueueOptions,
    RetryPolicy,
    Subscriber,
    Worker,
)
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker
from sqla_vitess_messages.contrib import opentelemetry
from sqla_vitess_messages.contrib.opentelemetry import (
    OpenTelemetryEvents,
    observe_queues,
    trace_enqueued,
    traced,
)
from sqla_vitess_messages.contrib.prometheus import PrometheusEvents, QueueCollector
from sqla_vitess_messages.headers import MessageHeadersMixin
from tests.backends import BACKENDS, Backend, async_url, enqueue, eventually

pytestmark = pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.name in ("sqlite", "vitess")],
    indirect=True,
    ids=lambda backend: backend.name,
)
MakeQueue = Callable[..., type[Any]]


@pytest.fixture
def queue(make_queue: MakeQueue) -> type[Any]:
    class Base(MessageHeadersMixin, DeclarativeBase):
        __abstract__ = True

    return make_queue(Base)


@pytest.fixture
def spans() -> Iterator[tuple[TracerProvider, Callable[[], list[ReadableSpan]]]]:
    """A tracer provider, and a function that returns its finished spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, lambda: list(exporter.get_finished_spans())
    if event.contains(MessageHeadersMixin, "before_insert", opentelemetry._before_insert):
        event.remove(MessageHeadersMixin, "before_insert", opentelemetry._before_insert)


def handle(message: Any, _session: Session) -> None:
    if message.body == "fails":
        raise LookupError("no such user")


def work(
    subscriber: Subscriber[Any], engine: Engine, handler: Any, settled: int, **options: Any
) -> None:
    """Run a worker until ``settled`` messages are settled."""
    policy = RetryPolicy(rules={LookupError: None})
    with Worker(subscriber, handler, sessionmaker(engine), retry=policy, **options):

        def is_done() -> bool:
            with Session(engine) as session:
                stats = subscriber.model.stats(session)
            return stats.acked + stats.dead == settled

        eventually(is_done)


def test_prometheus_counts_events_and_messages(engine: Engine, queue: type[Any], url: str) -> None:
    registry = CollectorRegistry()
    events = PrometheusEvents(registry)
    registry.register(QueueCollector(engine, queue))
    name = queue.__table__.name

    def sample(metric: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"message_queue_{metric}", {"queue": name, **labels})

    enqueue(engine, queue(body="a"), queue(body="b"), queue(body="fails"))
    enqueue(engine, queue(body="later", deliver_in=600))
    assert sample("messages", state="ready") == 3
    assert sample("messages", state="scheduled") == 1
    age = sample("oldest_ready_seconds")
    assert age is not None
    assert 0 <= age < 60
    work(Subscriber(queue, url, on_event=events), engine, handle, 3)
    assert sample("delivered_total", redelivered="false") == 3
    assert sample("settled_total", how="ack") == 2
    assert sample("settled_total", how="fail") == 1
    assert sample("dead_total") == 1
    assert sample("settle_seconds_count", how="ack") == 2
    assert sample("messages", state="dead") == 1


def test_a_queue_that_cannot_be_counted_does_not_fail_the_scrape(
    engine: Engine, queue: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    unreachable = create_engine("mysql+pymysql://user:s3cret@127.0.0.1:1/nowhere")
    registry = CollectorRegistry()
    registry.register(QueueCollector(unreachable, queue))
    list(registry.collect())
    assert "could not count" in caplog.text
    assert "s3cret" not in caplog.text
    with pytest.raises(InvalidArgumentType, match="engine="):
        QueueCollector("sqlite://", queue)  # type: ignore[arg-type]


def test_consumer_spans_link_to_the_spans_that_sent_their_messages(
    engine: Engine, queue: type[Any], url: str, spans: Any
) -> None:
    provider, finished = spans
    trace_enqueued(provider)
    trace_enqueued(provider)  # Creates no second span.
    with provider.get_tracer("web").start_as_current_span("request"), Session(engine) as session:
        session.add(queue(body="a", headers={"tenant": "ada"}))
        session.add(queue(body="fails"))
        session.commit()
    seen: list[Any] = []

    def handler(message: Any, session: Session) -> None:
        seen.append(message.headers)
        handle(message, session)

    work(Subscriber(queue, url), engine, traced(handler, provider), 2)
    name = queue.__table__.name
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in finished():
        by_name.setdefault(span.name, []).append(span)
    [request] = by_name["request"]
    sent, processed = by_name[f"send {name}"], by_name[f"process {name}"]
    assert len(sent) == len(processed) == 2
    assert {span.kind for span in sent} == {SpanKind.PRODUCER}
    assert {span.kind for span in processed} == {SpanKind.CONSUMER}
    for span in sent:
        assert span.parent.span_id == request.context.span_id
        assert span.attributes["messaging.system"] == "sqla_vitess_messages"
        assert span.attributes["messaging.destination.name"] == name
        assert span.attributes["messaging.operation.name"] == "send"
        assert span.attributes["messaging.operation.type"] == "send"
    contexts = {span.attributes["messaging.message.id"]: span.context for span in sent}
    for span in processed:
        [link] = span.links
        assert link.context.span_id == contexts[span.attributes["messaging.message.id"]].span_id
    [failed] = [span for span in processed if not span.status.is_ok and span.events]
    assert failed.attributes["error.type"] == "LookupError"
    assert {"tenant", "traceparent"} in [set(headers) for headers in seen]


def test_a_batch_has_one_span_with_a_link_for_each_message(
    engine: Engine, queue: type[Any], url: str, spans: Any
) -> None:
    provider, finished = spans
    trace_enqueued(provider)
    enqueue(engine, *(queue(body="a") for _ in range(3)))

    def handle_batch(messages: list[Any], _session: Session) -> None:
        assert len(messages) == 3

    work(
        Subscriber(queue, url), engine, traced(handle_batch, provider), 3,
        batch_size=10, concurrency=1,
    )  # fmt: skip
    [span] = [span for span in finished() if span.name.startswith("process")]
    assert span.attributes["messaging.batch.message_count"] == 3
    assert len(span.links) == 3


def test_a_coroutine_is_traced_as_well(
    engine: Engine, queue: type[Any], url: str, spans: Any, backend: Backend
) -> None:
    provider, finished = spans
    enqueue(engine, queue(body="not traced"))
    bind = async_url(url, "aiosqlite" if backend.server is None else "asyncmy")

    async def main() -> None:
        worker: AsyncWorker[Any]

        async def handler(_message: Any, _session: Any) -> None:
            worker.request_stop()

        async_engine = create_async_engine(bind)
        sessions = async_sessionmaker(async_engine)
        worker = AsyncWorker(AsyncSubscriber(queue, bind), traced(handler, provider), sessions)
        await worker.run()
        await async_engine.dispose()

    asyncio.run(main())
    [span] = finished()
    assert span.name == f"process {queue.__table__.name}"
    assert not span.links


def test_opentelemetry_metrics(engine: Engine, queue: type[Any], url: str) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe_queues(engine, queue, meter_provider=provider)
    enqueue(engine, queue(body="a"), queue(body="fails"))
    events = OpenTelemetryEvents(provider)
    work(Subscriber(queue, url, on_event=events), engine, handle, 2)
    points: dict[str, list[Any]] = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points[metric.name] = list(metric.data.data_points)
    [consumed] = points["messaging.client.consumed.messages"]
    assert consumed.value == 2
    assert consumed.attributes["messaging.destination.name"] == queue.__table__.name
    assert sum(point.count for point in points["messaging.process.duration"]) == 2
    assert [point.value for point in points["message_queue.dead"]] == [1]
    states = {
        point.attributes["message_queue.state"]: point.value
        for point in points["message_queue.messages"]
    }
    assert states == {"ready": 0, "scheduled": 0, "leased": 0, "dead": 1, "acked": 1}
    provider.shutdown()


def test_headers_follow_the_queues_columns_and_are_no_field_of_a_dataclass(
    backend: Backend,
) -> None:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Mail(MessageHeadersMixin, MessageQueueMixin, Base):
        __tablename__ = "mail"
        __queue__ = QueueOptions()
        address: Mapped[str] = mapped_column(String(255))

    assert {c.name for c in list(Mail.__table__.c)[7:]} == {"headers", "address"}
    assert Mail("ada@example.com").headers is None
    assert "headers" in Mail.__table__.comment
