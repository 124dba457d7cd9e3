"""Change a whole table to another kind: by one ALTER TABLE on MySQL, by a copy on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from alembic.operations import Operations
from alembic.operations.schemaobj import SchemaObjects
from alembic.util import CommandError
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DefaultClause,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    literal,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.rows.states import first_due_time
from sqla_vitess_messages.table.build import index_name, make_queue_table, render_inline_index
from sqla_vitess_messages.table.layouts import LAYOUTS, IndexSpec, make_columns
from sqla_vitess_messages.table.options import Layout
from sqla_vitess_messages.table.validate import check_layout
from sqla_vitess_messages.vitess.server import is_mysql

__all__ = ["change_layout", "from_queue", "to_queue"]

Clause = Callable[[DDLCompiler], str]

TEMPORARY = "_alembic_tmp_"
"""The prefix of the name of a copy, as in Alembic's own batches."""


class _AlterTable(ExecutableDDLElement):
    """Several changes of a table in one statement: MySQL makes all of them or none."""

    def __init__(self, table: Table, clauses: Sequence[Clause]) -> None:
        self.table = table
        self.clauses = list(clauses)


@compiles(_AlterTable)
def _compile_alter_table(element: _AlterTable, compiler: DDLCompiler, **_kw: object) -> str:
    clauses = ", ".join(clause(compiler) for clause in element.clauses)
    return f"ALTER TABLE {compiler.preparer.format_table(element.table)} {clauses}"


def change_layout(
    operations: Operations,
    name: str,
    schema: str | None,
    existing: Layout,
    options: QueueOptions,
) -> None:
    """Change a queue from the classic layout to the portable one, or back."""
    check_layout(operations.migration_context.connection, name, options.layout)
    before, after = LAYOUTS[existing], LAYOUTS[options.layout]
    if not is_mysql(operations.migration_context.dialect):
        _copy_to_queue(operations, name, schema, options, replaces=before.columns)
        return
    table = Table(name, MetaData(), *make_columns(options.layout), schema=schema)
    clauses = [_drop_index(spec) for spec in before.indexes if spec not in after.indexes]
    clauses += [_drop_column(column) for column in before.columns if column not in after.columns]
    for number, column in enumerate(after.columns):
        verb = "MODIFY" if column in before.columns else "ADD"
        clauses.append(_place_column(verb, table.c[column], after.columns[:number]))
    clauses += [_add_index(spec) for spec in after.indexes if spec not in before.indexes]
    clauses.append(_comment(options.to_comment()))
    operations.execute(_AlterTable(table, clauses))


def to_queue(
    operations: Operations, name: str, schema: str | None, options: QueueOptions, *, due: bool
) -> None:
    """Convert a table whose primary key is ``id`` into a queue.

    :param due: whether its rows become messages that are ready at once, or dead ones.
    """
    if not is_mysql(operations.migration_context.dialect):
        _copy_to_queue(operations, name, schema, options, replaces=("id",), due=due)
        return
    layout = LAYOUTS[options.layout]
    table = Table(name, MetaData(), *make_columns(options.layout), schema=schema)
    time_next = table.c.time_next
    final = time_next.server_default
    # The existing rows get the default of the new column, without an UPDATE of all of them.
    time_next.server_default = DefaultClause(str(first_due_time(due=due)))
    clauses: list[Clause] = []
    for number, column in enumerate(layout.columns):
        verb = "MODIFY" if column == "id" else "ADD"
        clauses.append(_place_column(verb, table.c[column], layout.columns[:number]))
    if layout.primary_key != ("id",):
        clauses += [_drop_primary_key, _add_primary_key(layout.primary_key)]
    clauses += [_add_index(spec) for spec in layout.indexes]
    clauses.append(_comment(options.to_comment()))
    operations.execute(_AlterTable(table, clauses))
    if not due:
        time_next.server_default = final
        operations.execute(_AlterTable(table, [_place_column("MODIFY", time_next, None)]))


def from_queue(
    operations: Operations,
    name: str,
    schema: str | None,
    layout_name: Layout,
    *,
    autoincrement: bool,
) -> None:
    """Convert a queue into an ordinary table with the primary key ``id``.

    :param autoincrement: whether the database gives new rows their ids.
    """
    layout = LAYOUTS[layout_name]
    # SQLite generates ids only in a column of type INTEGER, which has 64 bits there.
    type_ = BigInteger().with_variant(Integer(), "sqlite")
    id_column: Column[Any] = Column(
        "id", type_, primary_key=True, autoincrement=autoincrement, nullable=False
    )
    if not is_mysql(operations.migration_context.dialect):
        old = _reflect(operations, name, schema)
        new = _copy(operations, old, [id_column], replaces=layout.columns)
        _create_indexes(operations, old, new)
        return
    table = Table(name, MetaData(), id_column, schema=schema)
    clauses = [_comment("")]
    clauses += [_drop_index(spec) for spec in layout.indexes]
    if layout.primary_key != ("id",):
        clauses += [_drop_primary_key, _add_primary_key(("id",))]
    clauses += [_drop_column(column) for column in layout.columns if column != "id"]
    clauses.append(_place_column("MODIFY", id_column, None))
    operations.execute(_AlterTable(table, clauses))


def _place_column(verb: str, column: Column[Any], before: Sequence[str] | None) -> Clause:
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


def _drop_column(name: str) -> Clause:
    return lambda compiler: f"DROP COLUMN {compiler.preparer.quote(name)}"


def _drop_primary_key(_compiler: DDLCompiler) -> str:
    return "DROP PRIMARY KEY"


def _add_primary_key(names: Sequence[str]) -> Clause:
    return lambda compiler: f"ADD PRIMARY KEY ({', '.join(map(compiler.preparer.quote, names))})"


def _add_index(spec: IndexSpec) -> Clause:
    return lambda compiler: f"ADD {render_inline_index(spec, compiler.preparer)}"


def _drop_index(spec: IndexSpec) -> Clause:
    return lambda compiler: f"DROP INDEX {compiler.preparer.quote(spec.name)}"


def _comment(text: str) -> Clause:
    return lambda compiler: f"COMMENT {compiler.sql_compiler.render_literal_value(text, String())}"


def _copy_to_queue(
    operations: Operations,
    name: str,
    schema: str | None,
    options: QueueOptions,
    *,
    replaces: Sequence[str],
    due: bool | None = None,
) -> None:
    """Copy a table to a queue of the same name.

    :param replaces: the old table's columns that aren't payload.
    :param due: whether the rows of an ordinary table become ready or dead messages; None: the
        old table is a queue.
    """
    old = _reflect(operations, name, schema)
    new = _copy(operations, old, make_columns(options.layout), replaces=replaces, due=due)
    make_queue_table(new, options)
    _create_indexes(operations, old, new)


def _reflect(operations: Operations, name: str, schema: str | None) -> Table:
    context = operations.migration_context
    if context.as_sql or context.connection is None:
        raise CommandError(
            f"table {name!r}: SQLite can't alter it in place, and a copy needs to read the table "
            "from the database; run this migration without --sql"
        )
    return Table(name, MetaData(), schema=schema, autoload_with=context.connection)


def _copy(
    operations: Operations,
    old: Table,
    columns: Sequence[Column[Any]],
    *,
    replaces: Sequence[str],
    due: bool | None = None,
) -> Table:
    """Replace a table by a copy of the same name, which has no indexes yet, and return that.

    :param columns: the copy's columns that aren't payload.
    :param replaces: the old table's columns that aren't payload.
    :param due: as in :func:`_copy_to_queue`.
    """
    context = operations.migration_context
    payload = [column for column in old.columns if column.name not in replaces]
    constraints = [
        constraint
        for constraint in old.constraints
        if not isinstance(constraint, PrimaryKeyConstraint)
    ]
    new = SchemaObjects(context).table(
        TEMPORARY + old.name, *columns, *payload, *constraints, schema=old.schema
    )
    operations.impl.create_table(new)
    # The other columns get their defaults.
    sources: dict[Column[Any], ColumnElement[Any]] = {
        column: old.c[column.name] for column in new.columns if column.name in old.c
    }
    if due is not None:
        sources[new.c.time_next] = literal(first_due_time(due=due), BigInteger)
        if "time_scheduled" in new.c:
            sources[new.c.time_scheduled] = literal(0)
    assert context.connection is not None
    context.connection.execute(insert(new).from_select(list(sources), select(*sources.values())))
    operations.drop_table(old.name, schema=old.schema)
    operations.rename_table(new.name, old.name, schema=old.schema)
    return new.to_metadata(MetaData(), name=old.name)


def _create_indexes(operations: Operations, old: Table, new: Table) -> None:
    """Create the indexes of a copy: its own, and those of the old table that aren't a queue's."""
    specs = {spec for layout in LAYOUTS.values() for spec in layout.indexes}
    queue_indexes = {index_name(old, spec) for spec in specs}
    for index in old.indexes:
        if index.name not in queue_indexes:
            columns = [new.c[column.name] for column in index.columns]
            Index(index.name, *columns, unique=index.unique)
    for index in new.indexes:
        operations.execute(CreateIndex(index))
