"""ALTER TABLE with several changes in one statement, for MySQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Column, String, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqla_vitess_messages.table.build import render_inline_index
from sqla_vitess_messages.table.layouts import IndexSpec

__all__ = [
    "AlterTable",
    "Clause",
    "add_index",
    "add_primary_key",
    "drop_column",
    "drop_index",
    "drop_primary_key",
    "place_column",
    "set_comment",
]

Clause = Callable[[DDLCompiler], str]
"""Renders one of the changes."""


class AlterTable(ExecutableDDLElement):
    """Several changes of a table in one statement: MySQL makes all of them or none."""

    def __init__(self, table: Table, clauses: Sequence[Clause]) -> None:
        self.table = table
        self.clauses = list(clauses)


@compiles(AlterTable)
def _compile_alter_table(element: AlterTable, compiler: DDLCompiler, **_kw: object) -> str:
    clauses = ", ".join(clause(compiler) for clause in element.clauses)
    return f"ALTER TABLE {compiler.preparer.format_table(element.table)} {clauses}"


def place_column(verb: str, column: Column[Any], before: Sequence[str] | None) -> Clause:
    """Return the clause that adds or modifies a column.

    :param verb: ``ADD`` or ``MODIFY``.
    :param before: the names of the columns before it, none for the first one. None: it isn't moved.
    """

    def clause(compiler: DDLCompiler) -> str:
        rendered = f"{verb} COLUMN {compiler.get_column_specification(column)}"
        if before is None:
            return rendered
        place = f"AFTER {compiler.preparer.quote(before[-1])}" if before else "FIRST"
        return f"{rendered} {place}"

    return clause


def drop_column(name: str) -> Clause:
    return lambda compiler: f"DROP COLUMN {compiler.preparer.quote(name)}"


def drop_primary_key(_compiler: DDLCompiler) -> str:
    return "DROP PRIMARY KEY"


def add_primary_key(names: Sequence[str]) -> Clause:
    return lambda compiler: f"ADD PRIMARY KEY ({', '.join(map(compiler.preparer.quote, names))})"


def add_index(spec: IndexSpec) -> Clause:
    return lambda compiler: f"ADD {render_inline_index(spec, compiler.preparer)}"


def drop_index(spec: IndexSpec) -> Clause:
    return lambda compiler: f"DROP INDEX {compiler.preparer.quote(spec.name)}"


def set_comment(text: str) -> Clause:
    return lambda compiler: f"COMMENT {compiler.sql_compiler.render_literal_value(text, String())}"
