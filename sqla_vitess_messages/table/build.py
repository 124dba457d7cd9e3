"""Make a mapped table a queue: its comment, its options and its indexes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Constraint, Index, Table, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import DDLCompiler, IdentifierPreparer

from ..errors import InvalidQueue
from ..vitess.server import is_mysql
from .indexes import index_specs
from .layouts import LAYOUTS, IndexSpec
from .options import OPTIONS_KEY, QueueOptions, is_queue, queue_options
from .order import add_order_columns, check_order_columns
from .ticks import add_ticks_table
from .unique import UNSTREAMED, add_unique_columns, check_unique_columns
from .validate import check_columns, check_message_cols, check_shard_columns

__all__ = [
    "InlineIndexes",
    "index_columns",
    "index_name",
    "index_names",
    "make_queue_table",
    "remove_inline_indexes",
    "render_inline_index",
    "streamed_columns",
]

MAX_COMMENT = 2048
"""The longest table comment that MySQL accepts, in characters."""


class InlineIndexes(Constraint):
    """Renders a queue's indexes inside CREATE TABLE, so that one statement makes it on MySQL."""

    __visit_name__ = "message_queue_indexes"
    _column_flag = False  # Table.to_metadata reads it of each constraint.

    def __init__(self, **kw: Any) -> None:
        super().__init__(**kw)
        self.ddl_if(callable_=_creates_indexes_inline)

    def _copy(self, **_kw: Any) -> InlineIndexes:
        return InlineIndexes()

    copy = _copy


@compiles(InlineIndexes)
def _compile_inline_indexes(element: InlineIndexes, compiler: DDLCompiler, **_kw: Any) -> str:
    specs = index_specs(queue_options(element.table))
    return ", \n\t".join(render_inline_index(spec, compiler.preparer) for spec in specs)


def render_inline_index(spec: IndexSpec, preparer: IdentifierPreparer) -> str:
    """Return an index's definition as it stands in CREATE TABLE and ALTER TABLE ADD."""
    columns = [name.split() for name in spec.columns]
    rendered = ", ".join(" ".join([preparer.quote(name), *order]) for name, *order in columns)
    unique = "UNIQUE " if spec.unique else ""
    return f"{unique}INDEX {preparer.quote(spec.name)} ({rendered})"


def _creates_indexes_inline(*_event: Any, **context: Any) -> bool:
    return is_mysql(context["dialect"])


def _creates_indexes_separately(*_event: Any, **context: Any) -> bool:
    return not is_mysql(context["dialect"])


def make_queue_table(table: Table, options: QueueOptions) -> None:
    """Check a mapped table against its options and give it comment and indexes.

    :raises InvalidQueue: when the columns, the key or a name can't make a working queue.
    """
    layout = LAYOUTS[options.layout]
    check_columns(table, layout)
    check_order_columns(table, options)
    add_order_columns(table, options)
    check_unique_columns(table, options)
    add_unique_columns(table, options)
    if options.message_cols is None and layout.streams_all:
        options = options.replace(message_cols=streamed_columns(table))
    check_shard_columns(table, options)
    if options.message_cols is not None:
        check_message_cols(table, layout, options)
    table.comment = _comment(table, options)
    table.info[OPTIONS_KEY] = options
    table.append_constraint(InlineIndexes())
    # A reflected table has the indexes of the database.
    reflected = index_names(table, inline=True) | index_names(table, inline=False)
    table.indexes.difference_update({i for i in table.indexes if i.name in reflected})
    for spec in index_specs(options):
        Index(index_name(table, spec), *index_columns(table, spec), unique=spec.unique)
    add_ticks_table(table.metadata)


@event.listens_for(Table, "before_create")
def _create_indexes_once(table: Table, _connection: Connection, **_kw: Any) -> None:
    """Leave out the indexes that CREATE TABLE contains. A copy of a table would forget it."""
    if is_queue(table):
        own = index_names(table, inline=False)
        for index in table.indexes:
            if index.name in own:
                index.ddl_if(callable_=_creates_indexes_separately)


def _comment(table: Table, options: QueueOptions) -> str:
    comment = options.to_comment()
    if table.comment not in (None, comment):
        raise InvalidQueue(
            f"table {table.name!r}: its comment {table.comment!r} is where Vitess reads the "
            "queue's options; leave 'comment' out of __table_args__ and set __queue__"
        )
    if len(comment) > MAX_COMMENT:
        raise InvalidQueue(
            f"table {table.name!r}: the comment would have {len(comment)} characters, "
            f"{MAX_COMMENT} are allowed; name fewer or shorter columns in message_cols"
        )
    return comment


def streamed_columns(table: Table) -> list[str]:
    """Return the default of ``message_cols``: every column that instances have,
    ``id`` and ``epoch`` first."""
    first = ["id", "epoch"]
    others = [column for column in table.columns if column.name not in first]
    return first + [column.name for column in others if UNSTREAMED not in column.info]


def index_columns(table: Table, spec: IndexSpec) -> list[Any]:
    """Return an index's columns as expressions on a table."""
    parts = [name.split() for name in spec.columns]
    return [table.c[name].desc() if order else table.c[name] for name, *order in parts]


def index_name(table: Table, spec: IndexSpec) -> str:
    """Return an index's name outside of MySQL.

    It contains the table's name, because in SQLite index names are unique in the database.
    """
    return f"{table.name}_{spec.name}"


def index_names(table: Table, *, inline: bool) -> set[str]:
    """Return the names of the queue's own indexes.

    :param inline: whether they are part of CREATE TABLE, as on MySQL.
    """
    specs = index_specs(queue_options(table))
    return {spec.name if inline else index_name(table, spec) for spec in specs}


def remove_inline_indexes(table: Table) -> None:
    """Remove the indexes that MySQL makes with CREATE TABLE.

    For code that creates a table's indexes without evaluating their ``ddl_if``, as Alembic does.
    """
    own = index_names(table, inline=False)
    table.indexes.difference_update({index for index in table.indexes if index.name in own})
