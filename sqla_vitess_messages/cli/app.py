"""The commands of ``sqla-vitess-messages``, built with typer."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from . import admin, checking, enqueue, listing, operate, scheduling, stats, working
from .exits import exits

__all__ = ["app"]

app = typer.Typer(
    name="sqla-vitess-messages",
    help="Message queues in your SQL database, as SQLAlchemy models.\n\n"
    "Exit codes: 0, done; 1, a problem was found, or an id matches nothing; 2, it can't be "
    "done, such as for a wrong argument or a database that can't be reached.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,  # Local variables contain the URL with its password.
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(importlib.metadata.version("sqla-vitess-messages"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command("stats", cls=stats.StatsCommand)(exits(stats.stats))
app.command("list")(exits(listing.list_messages))
app.command("show")(exits(listing.show))
app.command("requeue")(exits(operate.requeue))
app.command("run-now")(exits(operate.run_now))
app.command("reschedule")(exits(operate.reschedule))
app.command("cancel")(exits(operate.cancel))
app.command("purge-dead")(exits(operate.purge_dead))
app.command("pause")(exits(operate.pause))
app.command("resume")(exits(operate.resume))
app.command("enqueue")(exits(enqueue.enqueue))
app.command("admin")(exits(admin.admin))
app.command("worker")(exits(working.worker))
app.command("schedule")(exits(scheduling.schedule))
app.command("check")(exits(checking.check))
app.command("ddl")(exits(checking.ddl))
app.command("demo")(exits(working.demo))
