"""Turn the table that is there into another: one ALTER TABLE on MySQL, a copy on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alembic.operations import Operations
from alembic.operations.schemaobj import SchemaObjects
from alembic.util import CommandError
from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    insert,
    literal,
    null,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.ddl import (
    MYSQL,
    InlineIndex,
    check_layout,
    make_queue_table,
    only_indexes_of,
)
from sqla_vitess_messages.layouts import DEFAULT_PRIORITY, LAYOUTS, IndexSpec, make_columns
from sqla_vitess_messages.leases import DEAD
from sqla_vitess_messages.options import Layout

Clause = Callable[[DDLCompiler], str]

TEMPORARY = "_alembic_tmp_"
"""What the name of a copy begins with, as in Alembic's own batches."""


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
    if not _is_mysql(operations):
        values = {"priority": literal(DEFAULT_PRIORITY)} if "priority" in after.columns else {}
        _copy(operations, name, schema, options, leaves_out=before.columns, values=values)
        return
    table = _table(name, schema, options.layout)
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
    """Make a queue of a table whose primary key is ``id``."""
    layout = LAYOUTS[options.layout]
    next_at_first = 0 if due else DEAD
    if not _is_mysql(operations):
        values = {
            "time_scheduled": literal(0),
            "time_next": literal(next_at_first, BigInteger),
            "epoch": literal(0),
            "priority": literal(DEFAULT_PRIORITY),
        }
        _copy(operations, name, schema, options, leaves_out=("id",), values=values)
        return
    table = _table(name, schema, options.layout)
    final = table.c.time_next.server_default
    # The rows that are there get the default of the new column, without an UPDATE of all of them.
    table.c.time_next.server_default = Column(server_default=str(next_at_first)).server_default
    clauses: list[Clause] = []
    for number, column in enumerate(layout.columns):
        verb = "MODIFY" if column == "id" else "ADD"
        clauses.append(_place_column(verb, table.c[column], layout.columns[:number]))
    if layout.primary_key != ("id",):
        clauses += [_drop_primary_key, _add_primary_key(layout.primary_key)]
    clauses += [_add_index(spec) for spec in layout.indexes]
    clauses.append(_comment(options.to_comment()))
    operations.execute(_AlterTable(table, clauses))
    if next_at_first:
        table.c.time_next.server_default = final
        modify = _place_column("MODIFY", table.c.time_next, None)
        operations.execute(_AlterTable(table, [modify]))


def from_queue(
    operations: Operations,
    name: str,
    schema: str | None,
    layout_name: Layout,
    *,
    autoincrement: bool,
) -> None:
    """Make an ordinary table, with the primary key ``id``, of a queue."""
    layout = LAYOUTS[layout_name]
    # SQLite gives rows their ids in a column of type INTEGER only; it has 64 bits there.
    type_ = BigInteger().with_variant(Integer(), "sqlite")
    id_column: Column[Any] = Column(
        "id", type_, primary_key=True, autoincrement=autoincrement, nullable=False
    )
    if not _is_mysql(operations):
        _copy(operations, name, schema, None, leaves_out=layout.columns, columns=[id_column])
        return
    table = Table(name, MetaData(), id_column, schema=schema)
    clauses = [_comment("")]
    clauses += [_drop_index(spec) for spec in layout.indexes]
    if layout.primary_key != ("id",):
        clauses += [_drop_primary_key, _add_primary_key(("id",))]
    clauses += [_drop_column(column) for column in layout.columns if column != "id"]
    clauses.append(_place_column("MODIFY", id_column, None))
    operations.execute(_AlterTable(table, clauses))


def _is_mysql(operations: Operations) -> bool:
    return operations.migration_context.dialect.name in MYSQL


def _table(name: str, schema: str | None, layout: Layout) -> Table:
    return Table(name, MetaData(), *make_columns(layout), schema=schema)


def _place_column(verb: str, column: Column[Any], before: Sequence[str] | None) -> Clause:
    """Return ``ADD`` or ``MODIFY`` a column; behind the last of those ``before``, if given."""

    def clause(compiler: DDLCompiler) -> str:
        shown = f"{verb} COLUMN {compiler.get_column_specification(column)}"
        if before is None:
            return shown
        return (
            f"{shown} AFTER {compiler.preparer.quote(before[-1])}" if before else f"{shown} FIRST"
        )

    return clause


def _drop_column(name: str) -> Clause:
    return lambda compiler: f"DROP COLUMN {compiler.preparer.quote(name)}"


def _drop_primary_key(_compiler: DDLCompiler) -> str:
    return "DROP PRIMARY KEY"


def _add_primary_key(names: Sequence[str]) -> Clause:
    return lambda compiler: f"ADD PRIMARY KEY ({', '.join(map(compiler.preparer.quote, names))})"


def _add_index(spec: IndexSpec) -> Clause:
    return lambda compiler: f"ADD {compiler.process(InlineIndex(spec))}"


def _drop_index(spec: IndexSpec) -> Clause:
    return lambda compiler: f"DROP INDEX {compiler.preparer.quote(spec.name)}"


def _comment(text: str) -> Clause:
    return lambda compiler: f"COMMENT {compiler.sql_compiler.render_literal_value(text, String())}"


def _copy(
    operations: Operations,
    name: str,
    schema: str | None,
    options: QueueOptions | None,
    *,
    leaves_out: Sequence[str],
    columns: Sequence[Column[Any]] = (),
    values: Mapping[str, Any] | None = None,
) -> None:
    """Copy a table's rows to a new one of the same name.

    :param options: of the queue that it becomes; None for an ordinary table.
    :param leaves_out: the old table's columns that aren't payload.
    :param columns: the new table's columns that aren't payload; default: the layout's.
    :param values: what the new columns get in the rows that are there. Default: NULL.
    """
    context = operations.migration_context
    if context.as_sql or context.connection is None:
        raise CommandError(
            f"table {name!r}: {context.dialect.name} can't alter it in place, and a copy needs a "
            "database to look at; run this migration without --sql"
        )
    old = Table(name, MetaData(), schema=schema, autoload_with=context.connection)
    own = make_columns(options.layout) if options is not None else columns
    payload = [column for column in old.columns if column.name not in leaves_out]
    constraints = [
        constraint
        for constraint in old.constraints
        if not isinstance(constraint, PrimaryKeyConstraint)
    ]
    new = SchemaObjects(context).table(
        TEMPORARY + name, *own, *payload, *constraints, schema=schema
    )
    operations.impl.create_table(new)
    given = values or {}
    sources = [
        old.c[column.name]
        if column.name in old.c and column.name not in given
        else func.coalesce(old.c[column.name], given[column.name])
        if column.name in old.c
        else given.get(column.name, null())
        for column in new.columns
    ]
    context.connection.execute(insert(new).from_select(list(new.columns), select(*sources)))
    operations.drop_table(name, schema=schema)
    operations.rename_table(TEMPORARY + name, name, schema=schema)
    final = new.to_metadata(MetaData(), name=name)
    if options is not None:
        make_queue_table(final, options)
        only_indexes_of(final, context.dialect.name)
    queue_indexes = {
        f"{name}_{spec.name}" for layout in LAYOUTS.values() for spec in layout.indexes
    }
    for index in old.indexes:
        if index.name not in queue_indexes:
            Index(
                index.name, *[final.c[column.name] for column in index.columns], unique=index.unique
            )
    for index in final.indexes:
        operations.execute(CreateIndex(index))
