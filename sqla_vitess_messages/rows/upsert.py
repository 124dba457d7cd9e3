"""INSERTs into a unique queue that skip or replace an unsettled message of the same key.

Which index a row conflicts with, MySQL doesn't let a statement choose. So these statements change
only rows of the same key there, and :mod:`.unique` finds rows that conflicted otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, ColumnElement, Insert, Table, and_, case
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from ..table.indexes import own_columns
from ..table.layouts import DEAD
from ..table.options import queue_options
from ..table.unique import NEXT_DUE, REVISION, UNSETTLED, unique_columns
from .epochs import after_replacement, has_attempts, next_revision
from .states import is_held

__all__ = ["InsertOrReplace", "InsertOrSkip"]


class InsertOrSkip(Insert):
    """INSERT rows, except for those whose key an unsettled message has."""

    inherit_cache = True


class InsertOrReplace(Insert):
    """INSERT rows; an unsettled message of the same key gets payload, priority and time instead."""

    inherit_cache = True


class _Proposed(ColumnElement[Any]):
    """The value of a column in the row that an INSERT proposes.

    MySQL's own name for the row, ``AS new``, isn't understood by 8.0.18 and older. Behind a vtgate
    there may be such a server, though vtgate reports a newer version.
    """

    __visit_name__ = "message_queue_proposed"
    inherit_cache = False

    def __init__(self, column: Column[Any]) -> None:
        self.column = column
        self.type = column.type


@compiles(_Proposed)
def _compile_excluded(element: _Proposed, compiler: SQLCompiler, **_kw: Any) -> str:
    return f"excluded.{compiler.preparer.format_column(element.column)}"


@compiles(_Proposed, "mysql")
@compiles(_Proposed, "mariadb")
def _compile_values(element: _Proposed, compiler: SQLCompiler, **_kw: Any) -> str:
    return f"VALUES({compiler.preparer.format_column(element.column)})"


@compiles(InsertOrSkip)
def _compile_or_skip(element: InsertOrSkip, compiler: SQLCompiler, **kw: Any) -> str:
    conflict = _conflict(_table(element), compiler)
    return f"{_inserting(element, compiler, **kw)} {conflict} DO NOTHING"


@compiles(InsertOrSkip, "mysql")
@compiles(InsertOrSkip, "mariadb")
def _compile_or_skip_on_mysql(element: InsertOrSkip, compiler: SQLCompiler, **kw: Any) -> str:
    # Not INSERT IGNORE, which hides all other errors, too.
    column = compiler.preparer.format_column(element.table.c.epoch)
    inserting = _inserting(element, compiler, **kw)
    return f"{inserting} ON DUPLICATE KEY UPDATE {column} = {column}"


@compiles(InsertOrReplace)
def _compile_or_replace(element: InsertOrReplace, compiler: SQLCompiler, **kw: Any) -> str:
    inserting, conflict = _inserting(element, compiler, **kw), _conflict(_table(element), compiler)
    changes = _render(_changes(_table(element)), compiler)
    return f"{inserting} {conflict} DO UPDATE SET {changes}"


@compiles(InsertOrReplace, "mysql")
@compiles(InsertOrReplace, "mariadb")
def _compile_or_replace_on_mysql(element: InsertOrReplace, compiler: SQLCompiler, **kw: Any) -> str:
    table = _table(element)
    is_same_key = and_(
        *(column == _Proposed(column) for column in unique_columns(table)),
        table.c.time_next < DEAD,
    )
    changes = (
        (column, case((is_same_key, value), else_=column)) for column, value in _changes(table)
    )
    inserting = _inserting(element, compiler, **kw)
    # PyMySQL sends many rows as one statement only if all parameters are among the VALUES.
    changing = _render(changes, compiler, literal_binds=True)
    return f"{inserting} ON DUPLICATE KEY UPDATE {changing}"


def _table(element: Insert) -> Table:
    assert isinstance(element.table, Table)
    return element.table


def _inserting(element: Insert, compiler: SQLCompiler, **kw: Any) -> str:
    inserting: str = compiler.visit_insert(element, **kw)  # type: ignore[no-untyped-call]
    return inserting


def _conflict(table: Table, compiler: SQLCompiler) -> str:
    key = [*unique_columns(table), table.c[UNSETTLED]]
    return f"ON CONFLICT ({', '.join(map(compiler.preparer.format_column, key))})"


def _changes(table: Table) -> Iterator[tuple[Column[Any], ColumnElement[Any]]]:
    """Yield what becomes of each column of a message whose payload is replaced.

    In this order: MySQL evaluates an assignment with the values of those before it.
    """
    columns = table.c
    due = _Proposed(columns.time_next)
    # While it is held, it isn't delivered: its time_next is when the lease ends, or later, if that
    # is when the new payload is due. It is never equal to next_due, by which is_held knows it.
    held_until = case((due >= columns.time_next, due + 1), else_=columns.time_next)
    yield columns.time_next, case((is_held(table), held_until), else_=due)
    yield columns[NEXT_DUE], due
    yield columns[REVISION], next_revision(columns[REVISION], columns.epoch)
    yield (
        columns.epoch,
        case((has_attempts(columns.epoch), after_replacement(columns.epoch)), else_=columns.epoch),
    )
    options = queue_options(table)
    kept = {*own_columns(options), *(options.unique_by or ())}
    for column in columns:
        if column.name == "priority" or (column.name not in kept and column.computed is None):
            yield column, _Proposed(column)


def _render(
    changes: Iterator[tuple[Column[Any], ColumnElement[Any]]] | Any,
    compiler: SQLCompiler,
    **kw: Any,
) -> str:
    return ", ".join(
        f"{compiler.preparer.format_column(column)} = "
        f"{compiler.process(value.self_group(), include_table=False, **kw)}"
        for column, value in changes
    )
