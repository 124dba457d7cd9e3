"""Everything, side by side: ``make bench``, or ``make bench QUICK=1``.

Starts its own servers, and writes ``benchmarks/results.json``, the table in
``docs/explanation/performance.md`` and the pictures beside it; a quick run prints the table alone.
Name parts to measure no more than those: ``python -m benchmarks vitess latency``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import embedded, footprint, growth, latency, shard, vitess
from benchmarks.figures import HEAD, QUICK, Figure
from tools.vitess import Cluster, MySQL, install

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sqla-vitess-messages-bench-"))
    folder.chmod(0o755)
    cluster = Cluster(folder / "cluster")
    mysql = MySQL("mysql", folder, install(), ["messages"])
    wanted = sys.argv[1:]
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "vitess": lambda: vitess.measure(cluster),
        "shard": lambda: shard.measure(cluster),
        "latency": lambda: latency.measure(cluster),
        "layouts": lambda: vitess.layouts(cluster),
        "sqlite": lambda: embedded.measure_sqlite(folder),
        "mysql": lambda: embedded.measure_mysql(mysql.url),
        "drivers": lambda: embedded.drivers(mysql.url),
        "growth": lambda: growth.measure(folder, mysql.url),
        "footprint": lambda: footprint.measure(folder),
    }
    if unknown := set(wanted) - parts.keys():
        sys.exit(f"no {', '.join(sorted(unknown))}: expected of {', '.join(parts)}")
    figures: list[Figure] = []
    try:
        mysql.start()
        cluster.start()
        mysql.wait()
        print(HEAD, flush=True)
        for name in wanted or parts:
            started = time.monotonic()
            for figure in parts[name]():
                figures.append(figure)
                print(figure.as_row(), flush=True)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        cluster.stop()
        mysql.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if not QUICK and not wanted:
        _write(figures)


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
