"""All benchmarks, each compared with a reference: ``make bench``, or ``make bench QUICK=1``.

They start their own servers. A full run writes ``benchmarks/results.json``, the table in
``docs/explanation/performance.md`` and the plots beside it; a quick run only prints the table.
To run some of the suites only, name them: ``python -m benchmarks vitess latency``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import (
    embedded,
    footprint,
    growth,
    latency,
    ordered,
    shard,
    unique,
    vitess,
)
from benchmarks.figures import HEAD, QUICK, Figure
from tools.vitess import Cluster, MySQL, install, temporary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"


@dataclass
class Servers:
    """The servers and the folder that the benchmarks use."""

    folder: Path
    mysql: MySQL
    cluster: Cluster


SUITES: dict[str, Callable[[Servers], Iterator[Figure]]] = {
    "vitess": lambda servers: vitess.measure(servers.cluster),
    "shard": lambda servers: shard.measure(servers.cluster),
    "latency": lambda servers: latency.measure(servers.cluster),
    "layouts": lambda servers: vitess.layouts(servers.cluster),
    "sqlite latency": lambda servers: latency.measure_sqlite(servers.folder),
    "sqlite": lambda servers: embedded.measure_sqlite(servers.folder),
    "mysql": lambda servers: embedded.measure_mysql(servers.mysql.url),
    "drivers": lambda servers: embedded.drivers(servers.mysql.url),
    "growth": lambda servers: growth.measure(servers.folder, servers.mysql.url),
    "ordered": lambda servers: ordered.measure(servers.folder, servers.mysql.url),
    "unique": lambda servers: unique.measure(servers.folder, servers.mysql.url),
    "footprint": lambda servers: footprint.measure(servers.folder),
}


def main() -> None:
    wanted = sys.argv[1:]
    if unknown := set(wanted) - SUITES.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(SUITES)}")
    with (
        tempfile.TemporaryDirectory() as folder,
        temporary(lambda data: MySQL("mysql", data, install(), ["messages"])) as mysql,
        temporary(Cluster) as cluster,
    ):
        mysql.wait()
        figures = _measure(Servers(Path(folder), mysql, cluster), wanted or list(SUITES))
    if not QUICK and not wanted:
        _write(figures)


def _measure(servers: Servers, names: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    print(HEAD, flush=True)
    for name in names:
        started = time.monotonic()
        for figure in SUITES[name](servers):
            figures.append(figure)
            print(figure.as_row(), flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return figures


def _write(figures: list[Figure]) -> None:
    from benchmarks import plots

    results = [figure.as_json() for figure in figures]
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    table = "\n".join([HEAD, *(figure.as_row() for figure in figures)])
    page = PAGE.read_text()
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    PAGE.write_text(re.sub(pattern, f"{BEGIN}\n{table}\n\n{END}", page, flags=re.DOTALL))
    plots.draw(figures, PAGE.with_suffix(""))


if __name__ == "__main__":
    main()
