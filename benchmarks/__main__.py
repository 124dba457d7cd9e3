"""Everything, side by side: ``make bench``, or ``make bench QUICK=1``.

Starts its own servers, and writes ``benchmarks/results.json``, the table in
``docs/explanation/performance.md`` and the pictures beside it; a quick run prints the table alone.
Name parts to measure no more than those: ``python -m benchmarks vitess latency``.
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

from benchmarks import embedded, footprint, growth, latency, shard, vitess
from benchmarks.figures import HEAD, QUICK, Figure
from tools.vitess import Cluster, MySQL, install, temporary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"


@dataclass
class Place:
    """Where to measure."""

    folder: Path
    mysql: MySQL
    cluster: Cluster


PARTS: dict[str, Callable[[Place], Iterator[Figure]]] = {
    "vitess": lambda place: vitess.measure(place.cluster),
    "shard": lambda place: shard.measure(place.cluster),
    "latency": lambda place: latency.measure(place.cluster),
    "layouts": lambda place: vitess.layouts(place.cluster),
    "sqlite": lambda place: embedded.measure_sqlite(place.folder),
    "mysql": lambda place: embedded.measure_mysql(place.mysql.url),
    "drivers": lambda place: embedded.drivers(place.mysql.url),
    "growth": lambda place: growth.measure(place.folder, place.mysql.url),
    "footprint": lambda place: footprint.measure(place.folder),
}


def main() -> None:
    wanted = sys.argv[1:]
    if unknown := set(wanted) - PARTS.keys():
        sys.exit(f"no {', '.join(sorted(unknown))}: expected of {', '.join(PARTS)}")
    with (
        tempfile.TemporaryDirectory() as folder,
        temporary(lambda data: MySQL("mysql", data, install(), ["messages"])) as mysql,
        temporary(Cluster) as cluster,
    ):
        mysql.wait()
        figures = _measure(Place(Path(folder), mysql, cluster), wanted or list(PARTS))
    if not QUICK and not wanted:
        _write(figures)


def _measure(place: Place, names: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    print(HEAD, flush=True)
    for name in names:
        started = time.monotonic()
        for figure in PARTS[name](place):
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
