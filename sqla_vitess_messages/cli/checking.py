"""The commands ``check`` and ``ddl``."""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import AsJson, Target, Url
from .check import check_queues
from .database import connect
from .ddl_script import statements
from .showing import print_json
from .targets import load_queues

__all__ = ["check", "ddl"]


def check(target: Target, url: Url, as_json: AsJson = False) -> int:
    """Compare queues with the database, and print each problem with its remedy.

    Exits with 1 if messages would be lost or stuck.
    """
    queues = load_queues(target)
    with connect(url) as engine, engine.connect() as connection:
        findings = check_queues(connection, queues)
    if as_json:
        print_json(
            [
                {
                    "table": finding.table,
                    "is_error": finding.is_error,
                    "problem": finding.problem,
                    "remedy": finding.remedy,
                }
                for finding in findings
            ]
        )
    else:
        for finding in findings:
            kind = "error" if finding.is_error else "warning"
            typer.echo(f"{kind}: {finding.table}: {finding.problem}\n  remedy: {finding.remedy}")
        if not findings:
            typer.echo(f"{len(queues)} queues, nothing is wrong")
    return int(any(finding.is_error for finding in findings))


def ddl(
    target: Target,
    dialect: Annotated[str, typer.Option(help="mysql, mariadb or sqlite.")] = "mysql",
    as_json: AsJson = False,
) -> int:
    """Print the statements that create the queues, including the vschema's, for review."""
    script = list(statements(load_queues(target), dialect))
    if as_json:
        print_json(script)
    else:
        typer.echo("\n\n".join(f"{statement};" for statement in script))
    return 0
