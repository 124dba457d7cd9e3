"""The capacity of many shards, computed and simulated from measurements of one.

docs/explanation/scale.md runs this code with the figures of ``python -m benchmarks``.
"""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass
from typing import NamedTuple

POSTPONES = 4
"""Batches that a tablet postpones concurrently: --queryserver-config-message-postpone-cap."""


@dataclass(frozen=True)
class Shard:
    """Messages per second that one shard enqueues, delivers, settles and purges, each alone."""

    enqueue: float
    deliver: float
    settle: float
    purge: float

    @property
    def bottleneck(self) -> str:
        """The step that is saturated first, where each step has its own cores."""
        rates = vars(self)
        return min(rates, key=rates.__getitem__)

    @property
    def most(self) -> float:
        """Messages per second from end to end, where each step has its own cores."""
        return min(vars(self).values())

    @property
    def shared(self) -> float:
        """Messages per second from end to end, where all steps share the measured cores."""
        return 1 / sum(1 / rate for rate in vars(self).values())


class Batches(NamedTuple):
    """The seconds that a stream's batch takes, until the next one can be sent to the subscriber."""

    each: float
    per_message: float

    @classmethod
    def from_rates(cls, small: int, small_rate: float, large: int, large_rate: float) -> Batches:
        """Compute from the messages per second at two batch sizes, with one subscriber."""
        small_time, large_time = small / small_rate, large / large_rate
        per_message = (large_time - small_time) / (large - small)
        return cls(small_time - small * per_message, per_message)

    def seconds(self, size: int) -> float:
        return self.each + size * self.per_message

    def rate(self, size: int, *, subscribers: int = 1, round_trip: float = 0) -> float:
        """Return the messages per second that a shard delivers over streams.

        :param round_trip: seconds on the network between tablet and subscriber, which are not part
            of the measurement.
        """
        busy = min(subscribers, POSTPONES)
        return busy * size / (self.seconds(size) + round_trip)


class Waits(NamedTuple):
    """The seconds that messages waited for a subscriber."""

    p50: float
    p99: float


def simulate_tablet(
    batches: Batches, rate: float, *, size: int, subscribers: int, messages: int = 50_000
) -> Waits:
    """Simulate a tablet's message manager, which sends a subscriber one batch at a time.

    :param rate: messages per second, which arrive at random.
    :param size: the batch size: up to so many waiting messages are sent together.
    """
    source = random.Random(1)
    arrivals: list[float] = []
    now = 0.0
    for _ in range(messages):
        now += source.expovariate(rate)
        arrivals.append(now)
    free = [0.0] * min(subscribers, POSTPONES)
    waits: list[float] = []
    first = 0
    while first < messages:
        start = max(heapq.heappop(free), arrivals[first])
        end = first + 1
        while end < messages and end - first < size and arrivals[end] <= start:
            end += 1
        waits += [start - arrival for arrival in arrivals[first:end]]
        heapq.heappush(free, start + batches.seconds(end - first))
        first = end
    percentiles = statistics.quantiles(waits, n=100)
    return Waits(percentiles[49], percentiles[98])


def hottest(shards: int, *, keys: int, skew: float) -> float:
    """Return the load of the hottest shard as a multiple of the mean.

    :param keys: the number of values of the sharding column, which are hashed to shards.
    :param skew: the n-th busiest key has 1/n^skew of the load of the busiest; 0 for equal loads.
    """
    source = random.Random(1)
    loads = [0.0] * shards
    for key in range(1, keys + 1):
        loads[source.randrange(shards)] += key**-skew
    return max(loads) / statistics.mean(loads)


def idle_statements(
    subscribers: int, shards_each: int, *, poll_interval: float = 0.1, statement: float = 0.001
) -> float:
    """Return the statements per second of pulling subscribers that find nothing.

    A subscriber polls its shards one after the other, then pauses.

    :param statement: the seconds that one poll of a shard takes.
    """
    return subscribers * shards_each / (poll_interval + shards_each * statement)
