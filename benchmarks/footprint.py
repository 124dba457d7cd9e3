"""The memory that a subscriber needs, and the time to import the package."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import QUICK, Figure, Goal, compare
from benchmarks.tables import bench
from sqla_vitess_messages import Subscriber

MESSAGES = 100_000 if QUICK else 1_000_000
WARM = 10_000


def measure(folder: Path) -> Iterator[Figure]:
    bytecode = str(folder / "bytecode")
    for module in ("sqla_vitess_messages", "sqlalchemy.orm"):
        _import_time(module, bytecode)
    yield compare(
        "import sqla_vitess_messages",
        lambda: _import_time("sqla_vitess_messages", bytecode),
        "import sqlalchemy.orm",
        lambda: _import_time("sqlalchemy.orm", bytecode),
        unit="ms",
        goal=Goal(1.15, at_most=True, limit="110 modules"),
        rounds=9,
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.footprint", str(folder / "memory.db")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    warm, full = map(float, done.stdout.split())
    figure = Figure(
        f"memory after {MESSAGES:,} messages through one subscriber", "MB",
        f"after {WARM:,}", Goal(1 + 20 / warm, at_most=True), [full], [warm],
    )  # fmt: skip
    yield figure


def _import_time(module: str, bytecode: str) -> float:
    """Return the milliseconds in a new process, with compiled modules, as when installed."""
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    code = (
        "import time; started = time.perf_counter()\n"
        f"import {module}\n"
        "print((time.perf_counter() - started) * 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=settings | {"PYTHONPYCACHEPREFIX": bytecode},
    )  # fmt: skip
    return float(done.stdout)


def _resident() -> float:
    """Return the resident memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def _run(path: str) -> None:
    """Print the memory after the first messages, and after all of them."""
    with (
        bench(f"sqlite:///{path}", purge_after=1, poller_interval=1) as queue,
        Subscriber(queue.model, queue.bind, max_concurrency=1_000) as subscriber,
    ):
        done, seen = 0, []
        for until in (WARM, MESSAGES):
            while done < until:
                queue.enqueue(5_000)
                left = 5_000
                while left:
                    messages = subscriber.get_many(500, 30)
                    for message in messages:
                        subscriber.ack(message)
                    left -= len(messages)
                done += 5_000
            subscriber.flush()
            time.sleep(0.5)
            seen.append(_resident())
    print(*seen)


if __name__ == "__main__":
    _run(sys.argv[1])
