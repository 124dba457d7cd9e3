"""The table of a queue: build it in its layout, and refuse a bad one before DDL is sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, Constraint, Index, Integer, Table, event, inspect, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import DDLCompiler

from .errors import InvalidQueue, QueueNotFound
from .layouts import LAYOUTS, IndexSpec, LayoutSpec
from .options import FORBIDDEN_IN_NAMES, MARK, Layout, QueueOptions

if TYPE_CHECKING:
    from .mixin import MessageQueueMixin

__all__ = [
    "OPTIONS_KEY",
    "InlineIndex",
    "check_database",
    "check_layout",
    "check_message_table",
    "index_names",
    "is_vitess",
    "make_queue_table",
    "only_indexes_of",
    "queue_table",
    "streamed_columns",
    "vitess_major",
]

OPTIONS_KEY = "sqla_vitess_messages"
"""Where ``Table.info`` keeps the queue's options."""

MAX_COMMENT = 2048
"""The longest table comment that MySQL takes, in characters."""

MYSQL = ("mysql", "mariadb")

_VITESS_REQUIRES = ("id", "priority", "epoch", "time_next", "time_acked")


class InlineIndex(Constraint):
    """An index inside CREATE TABLE, so that one statement makes the whole queue on MySQL."""

    __visit_name__ = "message_queue_index"

    def __init__(self, spec: IndexSpec, **kw: Any) -> None:
        super().__init__(**kw)
        self.spec = spec
        self.ddl_if(callable_=_is_mysql)

    def _copy(self, **_kw: Any) -> InlineIndex:
        return InlineIndex(self.spec)

    copy = _copy


@compiles(InlineIndex)
def _compile_inline_index(element: InlineIndex, compiler: DDLCompiler, **_kw: Any) -> str:
    quote = compiler.preparer.quote
    columns = [name.split() for name in element.spec.columns]
    rendered = ", ".join(" ".join([quote(name), *direction]) for name, *direction in columns)
    unique = "UNIQUE " if element.spec.unique else ""
    return f"{unique}INDEX {quote(element.spec.name)} ({rendered})"


def _is_mysql(*_event: Any, **context: Any) -> bool:
    return context["dialect"].name in MYSQL


def _never(*_event: Any, **_context: Any) -> bool:
    return False


def _is_other(*_event: Any, **context: Any) -> bool:
    return context["dialect"].name not in MYSQL


def queue_table(model: type[MessageQueueMixin]) -> Table:
    """Return the table of a queue model."""
    table = model.__table__
    assert isinstance(table, Table)  # _define_queue has seen to it.
    return table


def make_queue_table(table: Table, options: QueueOptions) -> None:
    """Check a mapped table against its options and give it comment and indexes.

    :raises InvalidQueue: when the columns, the key or a name can't make a working queue.
    """
    layout = LAYOUTS[options.layout]
    _check_columns(table, layout)
    if options.message_cols is None and layout.streams_all:
        options = options.replace(message_cols=streamed_columns(table))
    _check_shard_columns(table, options)
    if options.message_cols is not None:
        _check_message_cols(table, layout, options)
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
    table.comment = comment
    table.info[OPTIONS_KEY] = options
    for spec in layout.indexes:
        _add_index(table, spec)


def streamed_columns(table: Table) -> list[str]:
    """Return what ``message_cols`` is by default: every column."""
    first = ["id", "epoch"]
    return first + [column.name for column in table.columns if column.name not in first]


def _add_index(table: Table, spec: IndexSpec) -> None:
    def columns() -> list[Any]:
        parts = [name.split() for name in spec.columns]
        return [table.c[name].desc() if rest else table.c[name] for name, *rest in parts]

    # On MySQL the index is part of CREATE TABLE. Elsewhere it is a statement of its own, and
    # as SQLite knows an index by its name alone, without its table, the name has both.
    table.append_constraint(InlineIndex(spec))
    Index(spec.name, *columns(), unique=spec.unique).ddl_if(callable_=_never)
    Index(f"{table.name}_{spec.name}", *columns(), unique=spec.unique).ddl_if(callable_=_is_other)


def only_indexes_of(table: Table, dialect: str) -> None:
    """Take off a queue's table the indexes that its CREATE TABLE has, or that aren't for a dialect.

    For those who create a table's indexes without asking whether each is for the database.
    """
    unwanted = [
        index
        for index in table.indexes
        if index.name in index_names(table, dialect="sqlite" if dialect in MYSQL else "mysql")
        or (dialect in MYSQL and index.name in index_names(table, dialect))
    ]
    table.indexes.difference_update(unwanted)


def index_names(table: Table, dialect: str) -> set[str]:
    """Return the names of the queue's own indexes on a database."""
    options: QueueOptions = table.info[OPTIONS_KEY]
    names = {spec.name for spec in LAYOUTS[options.layout].indexes}
    return names if dialect in MYSQL else {f"{table.name}_{name}" for name in names}


def _check_columns(table: Table, layout: LayoutSpec) -> None:
    names = [column.name for column in table.columns]
    count = len(layout.columns)
    if tuple(names[:count]) != layout.columns:
        raise InvalidQueue(
            f"table {table.name!r}: its first columns are {', '.join(names[:count])}; expected "
            f"{', '.join(layout.columns)}. Don't define columns of these names, nor give a "
            "column a sort_order below -1000000"
        )
    for column in table.columns:
        if column.name in layout.columns:
            if not isinstance(column.type, Integer):
                raise InvalidQueue(
                    f"column {column.name!r} of table {table.name!r}: is {column.type!r}, and "
                    "must be the mixin's own; don't redefine it"
                )
        else:
            _check_payload(table, column, layout)
    key = tuple(column.name for column in table.primary_key.columns)
    if key != layout.primary_key:
        raise InvalidQueue(
            f"table {table.name!r}: its primary key is ({', '.join(key)}) and must be "
            f"({', '.join(layout.primary_key)}); take primary_key=True off the payload columns"
        )


def _check_payload(table: Table, column: Column[Any], layout: LayoutSpec) -> None:
    reserved = {*layout.columns, *_VITESS_REQUIRES}
    if column.name.lower() in reserved:
        raise InvalidQueue(
            f"column {column.name!r} of table {table.name!r}: the name belongs to the queue "
            "(upper and lower case are one to MySQL); choose another"
        )
    if any(mark in column.name for mark in FORBIDDEN_IN_NAMES):
        raise InvalidQueue(
            f"column {column.name!r} of table {table.name!r}: {' '.join(FORBIDDEN_IN_NAMES)} "
            "can't stand in the name, because they separate the parts of the table comment"
        )


def _check_message_cols(table: Table, layout: LayoutSpec, options: QueueOptions) -> None:
    names = options.message_cols or ()
    known = {column.name for column in table.columns}
    if unknown := [name for name in names if name not in known]:
        raise InvalidQueue(
            f"message_cols of table {table.name!r}: it has no column {', '.join(unknown)}; "
            "Vitess would stop reloading the schema"
        )
    needed = {"epoch", *layout.primary_key, *(options.shard_by or ())}
    if missing := sorted(needed - set(names)):
        raise InvalidQueue(
            f"message_cols of table {table.name!r}: lacks {', '.join(missing)}, without which a "
            "received message can't be settled"
        )


def _check_shard_columns(table: Table, options: QueueOptions) -> None:
    for name in options.shard_by or ():
        if name not in table.c:
            raise InvalidQueue(
                f"shard_by of table {table.name!r}: it has no column {name!r}, only "
                f"{', '.join(column.name for column in table.columns)}"
            )
        if name in LAYOUTS[options.layout].columns and name != "id":
            raise InvalidQueue(
                f"shard_by of table {table.name!r}: {name!r} can't decide about the shard; name "
                "payload columns, or 'id'"
            )
        if table.c[name].nullable:
            raise InvalidQueue(
                f"shard_by of table {table.name!r}: column {name!r} may be NULL, and then belongs "
                "to no shard; declare it nullable=False"
            )


@event.listens_for(Table, "before_create")
def _check_before_create(table: Table, connection: Connection | None, **_kw: Any) -> None:
    """Refuse a message table that would harm the tablet, whoever defined it."""
    check_message_table(table)
    options = table.info.get(OPTIONS_KEY)
    if isinstance(options, QueueOptions):
        check_layout(connection, table.name, options.layout)


def check_layout(connection: Connection | None, name: str, layout: Layout) -> None:
    """Check that a server takes a table of this layout.

    :raises InvalidQueue: for a classic one on Vitess 6 or newer.
    """
    if layout == "classic" and is_vitess(connection) and vitess_major(connection) >= 6:
        raise InvalidQueue(
            f"table {name!r}: the classic layout has no priority column, without which "
            "Vitess 6 and newer stop reloading the schema; use layout='portable'"
        )


def check_message_table(table: Table) -> None:
    """Check a table whose comment says that it is a message table, whoever defined it.

    :raises InvalidQueue: when Vitess could not work with it.
    """
    if not table.comment or MARK not in table.comment:
        return
    options = table.info.get(OPTIONS_KEY)
    layout = options.layout if isinstance(options, QueueOptions) else "minimal"
    told = QueueOptions.from_comment(table.comment, layout=layout)
    if layout == "classic":
        return
    names = [column.name for column in table.columns]
    if missing := [name for name in _VITESS_REQUIRES if name not in names]:
        raise InvalidQueue(f"table {table.name!r}: lacks the columns {', '.join(missing)}")
    if unknown := [name for name in told.message_cols or () if name not in names]:
        raise InvalidQueue(f"table {table.name!r}: has no column {', '.join(unknown)} to stream")


def is_vitess(connection: Connection | None) -> bool:
    """Say whether the server behind a connection is a vtgate; one that writes SQL has none."""
    if not isinstance(connection, Connection) or connection.dialect.name not in MYSQL:
        return False
    return "vitess" in str(connection.scalar(text("SELECT @@version"))).lower()


def vitess_major(connection: Connection | None) -> int:
    """Return Vitess's major version; 0 where it doesn't tell, as the oldest ones don't."""
    assert connection is not None
    comment = str(connection.scalar(text("SELECT @@version_comment")))
    found = re.search(r"Version: (\d+)", comment)
    return int(found[1]) if found else 0


def check_database(connection: Connection, table: Table) -> None:
    """Check that the database has the table and that it is this queue.

    :raises QueueNotFound: with what is missing and the remedy.
    """
    inspector = inspect(connection)
    if not inspector.has_table(table.name, schema=table.schema):
        raise QueueNotFound(
            f"the database has no table {table.name!r}; create it with "
            "Base.metadata.create_all(engine), or run the migrations"
        )
    existing = {column["name"] for column in inspector.get_columns(table.name, table.schema)}
    if missing := [column.name for column in table.columns if column.name not in existing]:
        raise QueueNotFound(
            f"table {table.name!r} lacks the columns {', '.join(missing)} of its model; "
            "run the migrations"
        )
    if connection.dialect.name in MYSQL:
        indexes = {index["name"] for index in inspector.get_indexes(table.name, table.schema)}
        needed = LAYOUTS[table.info[OPTIONS_KEY].layout].indexes
        if absent := [spec.name for spec in needed if spec.name not in indexes]:
            raise QueueNotFound(
                f"table {table.name!r} lacks the indexes {', '.join(absent)} of its model, by "
                "which its rows are found; run the migrations"
            )
    if is_vitess(connection):
        comment = inspector.get_table_comment(table.name, table.schema)["text"] or ""
        if MARK not in comment:
            raise QueueNotFound(
                f"table {table.name!r} is no message table: its comment is {comment!r}, "
                f"expected {table.comment!r}"
            )
