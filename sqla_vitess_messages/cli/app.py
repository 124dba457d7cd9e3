"""The commands of ``sqla-vitess-messages``, built with typer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import MessageQueueError
from . import demo as demonstration
from . import supervisor
from .check import check_queues
from .ddl_script import statements
from .targets import load_queues

__all__ = ["app"]

app = typer.Typer(
    help="Message queues in your SQL database, as SQLAlchemy models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # Local variables contain the URL with its password.
)


class Transport(StrEnum):
    """The values of ``--transport``, as in :data:`.TransportName`."""

    auto = "auto"
    pull = "pull"
    stream = "stream"
    grpc = "grpc"


@app.callback()
def commands() -> None:
    """Message queues in your SQL database, as SQLAlchemy models."""


@app.command()
def demo(
    url: Annotated[
        str | None,
        typer.Option(help="Database URL. Default: a new SQLite file.", envvar="DATABASE_URL"),
    ] = None,
    messages: Annotated[
        int, typer.Option(min=20, max=1_000_000, help="Number of messages to enqueue.")
    ] = 2_000,
    transport: Annotated[
        Transport, typer.Option(help="How the consumers receive messages.")
    ] = Transport.auto,
) -> None:
    """Enqueue orders in transactions, settle them in two processes, kill one of them, and count.

    Exits with 1 if a count is wrong. On your database it creates three tables, and drops them.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sqla-vitess-messages-") as folder,
        _errors_exit_with(1),
    ):
        database = url or f"sqlite:///{Path(folder) / 'demo.db'}"
        is_right = demonstration.run(database, messages, transport.value)
    raise typer.Exit(0 if is_right else 1)


@app.command()
def worker(
    target: Annotated[str, typer.Argument(help="package.module:name of a Worker.")],
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Handlers that run at the same time. Default: the worker's own."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Number of processes, each with this concurrency.")
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when code changes, for development.")
    ] = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT, and let it finish the handlers that have begun.

    A second signal ends it at once, with exit code 1.
    """
    if reload and processes > 1:
        raise typer.BadParameter("--reload runs one process; leave out --processes")
    with _errors_exit_with(1):
        if reload:
            code = supervisor.run_reloading(target, concurrency, notify=typer.echo)
        elif processes > 1:
            code = supervisor.run_processes(target, processes, concurrency)
        else:
            code = supervisor.run_worker(target, concurrency)
    raise typer.Exit(code)


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(help="package.module:name of a declarative base or a MetaData.")
    ],
    url: Annotated[str, typer.Option(help="Database URL.", envvar="DATABASE_URL")],
) -> None:
    """Compare queues with the database, and print each problem with its remedy.

    Exits with 1 if messages would be lost or stuck.
    """
    with _errors_exit_with(2):
        queues = load_queues(target)
        engine = create_engine(url)
        with engine.connect() as connection:
            findings = check_queues(connection, queues)
        engine.dispose()
    for finding in findings:
        kind = "error" if finding.is_error else "warning"
        typer.echo(f"{kind}: {finding.table}: {finding.problem}\n  remedy: {finding.remedy}")
    if not findings:
        typer.echo(f"{len(queues)} queues, nothing is wrong")
    raise typer.Exit(any(finding.is_error for finding in findings))


@app.command()
def ddl(
    target: Annotated[
        str, typer.Argument(help="package.module:name of a declarative base or a MetaData.")
    ],
    dialect: Annotated[str, typer.Option(help="mysql, mariadb or sqlite.")] = "mysql",
) -> None:
    """Print the statements that create the queues, including the vschema's, for review."""
    with _errors_exit_with(2):
        script = [f"{statement};" for statement in statements(load_queues(target), dialect)]
    typer.echo("\n\n".join(script))


@contextmanager
def _errors_exit_with(code: int) -> Iterator[None]:
    """Print an error of the database or of this library, and exit."""
    try:
        yield
    except (SQLAlchemyError, MessageQueueError) as error:
        # The driver's own error lacks the statement and its parameters.
        typer.echo(f"Error: {getattr(error, 'orig', None) or error}", err=True)
        raise typer.Exit(code) from None
