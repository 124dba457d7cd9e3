"""Metrics for Prometheus, with the library ``prometheus_client``.

.. code-block:: python

    Subscriber(Mail, url, on_event=PrometheusEvents())
    REGISTRY.register(QueueCollector(engine, Mail, Invoice))
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import InvalidArgumentType
from ..events import Dead, Delivered, Event, LeaseExpired, Reconnecting, Settled, StreamSilent
from ..extras import needs_extra
from ..logs import get_logger
from ..mixin import MessageQueueMixin
from ..rows.message import queue_table
from ..rows.stats import STATES
from ..shown import shown

with needs_extra("prometheus", "prometheus_client"):
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

__all__ = ["PrometheusEvents", "QueueCollector"]

log = get_logger(__name__)


class PrometheusEvents:
    """Counts the events of subscribers. One instance can be the ``on_event`` of several.

    :param registry: where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"message_queue_{name}", text, ["queue", *labels], registry=registry)

        self._delivered = counter("delivered", "Messages handed out.", "redelivered")
        self._settled = counter("settled", "Settlements committed.", "how")
        self._dead = counter("dead", "Messages that failed for good.")
        self._expired = counter("leases_expired", "Leases that ended without a settlement.")
        self._reconnecting = counter("connections_lost", "Connections lost.")
        self._silent = counter(
            "streams_silent", "Streams that delivered nothing while messages were due."
        )
        self._seconds = Histogram(
            "message_queue_settle_seconds",
            "Seconds from handing out a message to its settlement.",
            ["queue", "how"],
            registry=registry,
        )

    def __call__(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Delivered):
            self._delivered.labels(event.queue, str(event.redelivered).lower()).inc()
        elif isinstance(event, Settled):
            self._settled.labels(event.queue, event.how).inc()
            self._seconds.labels(event.queue, event.how).observe(event.seconds)
        else:
            counters = {
                Dead: self._dead,
                LeaseExpired: self._expired,
                Reconnecting: self._reconnecting,
                StreamSilent: self._silent,
            }
            if type(event) in counters:
                counters[type(event)].labels(event.queue).inc()


class QueueCollector(Collector):
    """Counts the messages of queues at each scrape, with one query for each queue.

    :param engine: of the database that has the queues.
    :param models: the queues' classes.
    """

    def __init__(self, engine: Engine, *models: type[MessageQueueMixin]) -> None:
        if not isinstance(engine, Engine):
            raise InvalidArgumentType(f"engine={shown(engine)}: expected an Engine")
        self._engine = engine
        self._models = {queue_table(model).name: model for model in models}

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the metrics without values, so that registering doesn't query the database."""
        return list(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics. A queue that can't be counted is omitted, and logged."""
        depth, age = self._families()
        for queue, model in self._models.items():
            try:
                with self._engine.connect() as connection:
                    stats = model.stats(connection)
            except SQLAlchemyError as error:
                reason = getattr(error, "orig", error)
                log.warning("could not count: %s", reason, extra={"queue": queue})
                continue
            for state in STATES:
                depth.add_metric([queue, state], getattr(stats, state))
            oldest = stats.oldest_ready_age
            age.add_metric([queue], 0 if oldest is None else oldest.total_seconds())
        yield depth
        yield age

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "message_queue_messages", "Messages by state.", labels=["queue", "state"]
            ),
            GaugeMetricFamily(
                "message_queue_oldest_ready_seconds",
                "How long the oldest ready message has been due.",
                labels=["queue"],
            ),
        )
