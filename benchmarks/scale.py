"""What many shards carry, reckoned and simulated from what one was measured to do.

docs/explanation/scale.md runs it, with the figures of ``python -m benchmarks``.
"""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass
from typing import NamedTuple

POSTPONES = 4
"""Batches that a tablet postpones at a time: --queryserver-config-message-postpone-cap."""


@dataclass(frozen=True)
class Shard:
    """Messages a second that one shard takes, delivers, settles and purges, each by itself."""

    enqueue: float
    deliver: float
    settle: float
    purge: float

    @property
    def bottleneck(self) -> str:
        """The step that is full first, where each has cores of its own."""
        rates = vars(self)
        return min(rates, key=rates.__getitem__)

    @property
    def most(self) -> float:
        """Messages a second from end to end, where each step has cores of its own."""
        return min(vars(self).values())

    @property
    def shared(self) -> float:
        """Messages a second from end to end, where all steps share the measured cores."""
        return 1 / sum(1 / rate for rate in vars(self).values())


class Batches(NamedTuple):
    """What a batch of a stream takes until the subscriber may get the next one, in seconds."""

    each: float
    per_message: float

    @classmethod
    def from_rates(cls, small: int, small_rate: float, large: int, large_rate: float) -> Batches:
        """Reckon from the messages a second at two batch sizes, with one subscriber."""
        small_time, large_time = small / small_rate, large / large_rate
        per_message = (large_time - small_time) / (large - small)
        return cls(small_time - small * per_message, per_message)

    def seconds(self, size: int) -> float:
        return self.each + size * self.per_message

    def rate(self, size: int, *, subscribers: int = 1, round_trip: float = 0) -> float:
        """Return the messages a second that a shard delivers by streams.

        :param round_trip: seconds on the network from tablet to subscriber, which the measurement
            didn't have.
        """
        busy = min(subscribers, POSTPONES)
        return busy * size / (self.seconds(size) + round_trip)


class Waits(NamedTuple):
    """For how long messages waited for a subscriber, in seconds."""

    p50: float
    p99: float


def simulate_tablet(
    batches: Batches, rate: float, *, size: int, subscribers: int, messages: int = 50_000
) -> Waits:
    """Simulate a tablet's message manager: a subscriber has one batch at a time.

    :param rate: messages a second, that come at random.
    :param size: of a batch, at most: what waits goes out together.
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
    """Return how many times the mean load the hottest shard has.

    :param keys: values of the sharding column, hashed to shards.
    :param skew: the n-th busiest key has 1/n^skew of the load of the busiest; 0: all the same.
    """
    source = random.Random(1)
    loads = [0.0] * shards
    for key in range(1, keys + 1):
        loads[source.randrange(shards)] += key**-skew
    return max(loads) / statistics.mean(loads)


def idle_statements(
    subscribers: int, shards_each: int, *, poll_interval: float = 0.1, statement: float = 0.001
) -> float:
    """Return the statements a second of pulling subscribers that find nothing.

    A subscriber looks at its shards one after the other, then pauses.

    :param statement: seconds that one look at a shard takes.
    """
    return subscribers * shards_each / (poll_interval + shards_each * statement)
