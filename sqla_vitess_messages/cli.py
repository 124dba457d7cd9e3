"""The commands, by typer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Optional

import typer
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from . import demo as demonstration
from . import supervisor
from .check import check_queues
from .errors import MessageQueueError
from .statements import statements
from .targets import load_queues
from .transports import TransportName

app = typer.Typer(
    help="Message queues in your SQL database, as SQLAlchemy models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # They hold the URL, and so the password.
)


@app.callback()
def commands() -> None:
    """Message queues in your SQL database, as SQLAlchemy models."""


@app.command()
def demo(
    url: Annotated[
        Optional[str],  # noqa: UP045  # typer reads it on Python 3.10.
        typer.Option(help="Database URL. Default: a new SQLite file.", envvar="DATABASE_URL"),
    ] = None,
    messages: Annotated[int, typer.Option(min=20, max=1_000_000, help="To enqueue.")] = 2_000,
    transport: Annotated[str, typer.Option(help="auto, pull or stream.")] = "auto",
) -> None:
    """Enqueue orders in transactions, settle them in two processes, kill one on the way, and count.

    Exits with 1 if a count is off. On your database it makes three tables, and drops them.
    """
    with tempfile.TemporaryDirectory(prefix="sqla-vitess-messages-") as folder:
        try:
            right = demonstration.run(
                url or f"sqlite:///{Path(folder) / 'demo.db'}", messages, _transport(transport)
            )
        except (SQLAlchemyError, MessageQueueError) as error:
            typer.echo(f"Error: {getattr(error, 'orig', None) or error}", err=True)
            raise typer.Exit(1) from None
    raise typer.Exit(0 if right else 1)


@app.command()
def worker(
    target: Annotated[str, typer.Argument(help="package.module:name of a Worker.")],
    concurrency: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=1000, help="Handlers at a time. Default: the worker's own."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Processes, each so many.")] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start anew when code changes, for development.")
    ] = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT, and let it finish what it has begun.

    A second signal ends it at once, with exit code 1.
    """
    if reload and processes > 1:
        raise typer.BadParameter("--reload runs one process; leave out --processes")
    try:
        if reload:
            code = supervisor.run_reloading(target, concurrency, notify=typer.echo)
        elif processes > 1:
            code = supervisor.run_processes(target, processes, concurrency)
        else:
            code = supervisor.run_worker(target, concurrency)
    except (SQLAlchemyError, MessageQueueError) as error:
        typer.echo(f"Error: {getattr(error, 'orig', None) or error}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="package.module:Base, or a MetaData.")],
    url: Annotated[str, typer.Option(help="Database URL.", envvar="DATABASE_URL")],
) -> None:
    """Compare queues with the database; say what is wrong, and the remedy.

    Exits with 1 if messages would be lost to it or stuck.
    """
    try:
        queues = load_queues(target)
        engine = create_engine(url)
        with engine.connect() as connection:
            findings = check_queues(connection, queues)
        engine.dispose()
    except (SQLAlchemyError, MessageQueueError) as error:
        typer.echo(f"Error: {getattr(error, 'orig', None) or error}", err=True)
        raise typer.Exit(2) from None
    for finding in findings:
        kind = "error" if finding.is_error else "warning"
        typer.echo(f"{kind}: {finding.table}: {finding.problem}\n  remedy: {finding.remedy}")
    if not findings:
        typer.echo(f"{len(queues)} queues, nothing is wrong")
    raise typer.Exit(any(finding.is_error for finding in findings))


@app.command()
def ddl(
    target: Annotated[str, typer.Argument(help="package.module:Base, or a MetaData.")],
    dialect: Annotated[str, typer.Option(help="mysql, mariadb or sqlite.")] = "mysql",
) -> None:
    """Print the statements that create queues, the vschema's included, for review."""
    try:
        shown = [f"{statement};" for statement in statements(load_queues(target), dialect)]
    except (SQLAlchemyError, MessageQueueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo("\n\n".join(shown))


def _transport(name: str) -> TransportName:
    if name == "stream":
        return "stream"
    return "pull" if name == "pull" else "auto"
