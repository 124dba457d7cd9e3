"""The commands ``worker`` and ``demo``."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidArgument
from . import demo as demonstration
from . import supervisor

__all__ = ["Transport", "demo", "worker"]


class Transport(StrEnum):
    """The values of ``--transport``, as in :data:`.TransportName`."""

    auto = "auto"
    pull = "pull"
    stream = "stream"
    grpc = "grpc"


def worker(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="package.module:name of a Worker or an AsyncWorker, or of a function that returns "
            "one. Each of several works in processes of its own.",
            show_default=False,
        ),
    ],
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Handlers of a process that run at the same time. Default: the worker's own.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Number of processes of each target, each with this concurrency."
        ),
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when code changes, for development.")
    ] = False,
) -> int:
    """Run workers until SIGTERM or SIGINT, and let them finish the handlers that have begun.

    A second signal ends them at once, with exit code 1.
    """
    if reload and processes > 1:
        raise InvalidArgument("--reload runs one process of each target; leave out --processes")
    if reload:
        return supervisor.run_reloading(targets, concurrency, notify=typer.echo)
    return supervisor.run(targets, processes, concurrency)


def demo(
    url: Annotated[
        str | None,
        typer.Option(
            help="Database URL. Default: a new SQLite file.",
            envvar="DATABASE_URL",
            show_default=False,
        ),
    ] = None,
    messages: Annotated[
        int, typer.Option(min=20, max=1_000_000, help="Number of messages to enqueue.")
    ] = 2_000,
    transport: Annotated[
        Transport, typer.Option(help="How the consumers receive messages.")
    ] = Transport.auto,
) -> int:
    """Enqueue orders in transactions, settle them in two processes, kill one of them, and count.

    Exits with 1 if a count is wrong. On your database it creates three tables, and drops them.
    """
    with tempfile.TemporaryDirectory(prefix="sqla-vitess-messages-") as folder:
        database = url or f"sqlite:///{Path(folder) / 'demo.db'}"
        is_right = demonstration.run(database, messages, transport.value)
    return 0 if is_right else 1
