"""``python -m tools.vitess``: install, start, stop, remove, kill, restart, reparent."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from .cluster import TABLETS, Cluster
from .downloads import MissingTool, cache_dir, install
from .process import ServerFailed
from .vtcombo import VtCombo


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.vitess", description=__doc__)
    parser.add_argument("--folder", type=Path, help="the data folder; by default in the cache")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="download or build every program into the cache")
    kinds = ("cluster", "dev")
    for name, text in (
        ("start", "start the servers, and print the URLs"),
        ("stop", "stop every process"),
        ("remove", "stop every process, and delete the data"),
    ):
        commands.add_parser(name, help=text).add_argument("kind", choices=kinds)
    for name, text in (("kill", "kill a server with SIGKILL"), ("restart", "restart a server")):
        command = commands.add_parser(name, help=text)
        command.add_argument("kind", choices=kinds)
        command.add_argument("server", help="such as vtgate or vttablet-100")
    reparent = commands.add_parser("reparent", help="make a tablet the primary of its shard")
    reparent.add_argument("tablet", choices=[tablet.name for tablet in TABLETS])
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except (MissingTool, ServerFailed, KeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "install":
        print(install())
        return
    kind = getattr(arguments, "kind", "cluster")
    folder = arguments.folder or cache_dir() / "run" / kind
    vitess = Cluster(folder) if kind == "cluster" else VtCombo(folder)
    if arguments.command == "start":
        vitess.start()
        if isinstance(vitess, Cluster):
            print(f"flush delay 100 ms  {vitess.url()}")
            print(f"flush delay 1 ms    {vitess.url(gate='vtgate-fast')}")
        else:
            print(vitess.url())
    elif arguments.command in ("stop", "remove"):
        vitess.stop()
        if arguments.command == "remove":
            shutil.rmtree(folder)
    elif arguments.command == "reparent":
        assert isinstance(vitess, Cluster)
        vitess.reparent(next(t for t in TABLETS if t.name == arguments.tablet))
    else:
        getattr(vitess, arguments.command)(arguments.server)


if __name__ == "__main__":
    sys.exit(main())
