"""``python -m tools.vitess``: install, start, stop, remove, kill, restart, reparent."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

from .cluster import TABLETS, Cluster
from .downloads import VITESS_VERSIONS, MissingTool, cache_dir, install, vitess_version
from .process import ServerFailed
from .vtcombo import VtCombo


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.vitess", description=__doc__)
    parser.add_argument(
        "--vitess", default=vitess_version(), metavar="VERSION",
        help=f"the version of Vitess's Go module: {', '.join(VITESS_VERSIONS)} are tested; "
        "by default %(default)s, or that of the environment variable VITESS_VERSION",
    )  # fmt: skip
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
        print(install(arguments.vitess))
        return
    kind = getattr(arguments, "kind", "cluster")
    folder = arguments.folder or _data_folder() / f"{kind}-{arguments.vitess}"
    vitess = (Cluster if kind == "cluster" else VtCombo)(folder, arguments.vitess)
    if arguments.command == "start":
        vitess.start()
        if isinstance(vitess, Cluster):
            print(f"flush delay 100 ms  {vitess.url()}")
            print(f"flush delay 1 ms    {vitess.url(gate='vtgate-fast')}")
        else:
            for name, url in (("main", vitess.url()), ("sharded", vitess.url("sharded"))):
                print(f"{name:8} {url}")
            print(f"gRPC     {vitess.grpc()}")
    elif arguments.command in ("stop", "remove"):
        vitess.stop()
        if arguments.command == "remove":
            shutil.rmtree(folder)
    elif arguments.command == "reparent":
        assert isinstance(vitess, Cluster)
        vitess.reparent(next(t for t in TABLETS if t.name == arguments.tablet))
    else:
        getattr(vitess, arguments.command)(arguments.server)


def _data_folder() -> Path:
    """Return this checkout's own folder in the cache, where the servers' user can read it."""
    checkout = Path(__file__).parents[2]
    digest = hashlib.sha256(str(checkout).encode()).hexdigest()[:8]
    return cache_dir() / "run" / f"{checkout.name}-{digest}"


if __name__ == "__main__":
    sys.exit(main())
