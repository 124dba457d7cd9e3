"""Compare queues with their database, and report each problem with its remedy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pymysql.cursors import SSCursor
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Inspector,
    Table,
    column,
    create_engine,
    func,
    inspect,
    select,
    table,
    text,
)

from ..errors import InvalidQueue
from ..table.build import index_name
from ..table.indexes import index_specs
from ..table.layouts import LAYOUTS
from ..table.options import MARK, CommentOptions, queue_options
from ..table.order import existing_order, order_of
from ..table.pauses import PAUSES
from ..table.ticks import TICKS, has_ticks_table
from ..table.unique import UNIQUE_INDEX
from ..table.validate import VITESS_REQUIRES, check_schema
from ..vitess.server import is_mysql, is_pymysql, is_vitess, vitess_major
from ..vitess.vschema import is_sharded, keyspace_of, vindexes_of

__all__ = ["Finding", "check_queues"]

MIGRATE = "run the migrations, or generate one with 'alembic revision --autogenerate'"

MAX_FLUSH_DELAY = 0.05
"""Seconds of vtgate's flush delay that hardly add to a stream's latency."""

_SLOW_ROWS = "SELECT REPEAT('x', 20000) UNION ALL SELECT SLEEP(0.2)"

_TABLES = table(
    "tables",
    column("table_name"),
    column("table_schema"),
    column("table_comment"),
    schema="information_schema",
)

_COLUMNS = table(
    "columns",
    column("table_name"),
    column("table_schema"),
    column("column_name"),
    schema="information_schema",
)


@dataclass(frozen=True)
class Finding:
    """A problem of a table."""

    table: str
    problem: str
    remedy: str
    is_error: bool = True
    """Whether messages are lost or stuck. Otherwise the queue is slow, or surprising."""


def check_queues(connection: Connection, queues: Iterable[Table]) -> list[Finding]:
    """Compare queues with the database.

    :param queues: the tables of the models.
    :return: the problems, errors first; an empty list if there are none.
    """
    vitess = is_vitess(connection)
    found: list[Finding] = []
    if vitess and (target := str(connection.scalar(select(func.database())))).count(":"):
        found.append(_no_locks_on_shard(target))
        # vtgate passes what is sent to a shard on to MySQL, which has no vschema.
        whole = create_engine(connection.engine.url.set(database=keyspace_of(connection)))
        with whole.connect() as in_keyspace:
            found += check_queues(in_keyspace, queues)
        whole.dispose()
        return _errors_first(found)
    inspector = inspect(connection)
    queues = list(queues)
    found += _check_ticks(connection, inspector, queues, vitess=vitess)
    for queue in queues:
        try:
            check_schema(connection, queue)
        except InvalidQueue as error:
            found.append(Finding(queue.name, str(error), "a model without a schema"))
            continue
        sharded = vitess and is_sharded(connection, queue)
        exists = inspector.has_table(queue.name, schema=queue.schema)
        if not exists and not (sharded and _is_listed(connection, queue)):
            problem = "the database has no such table"
            found.append(Finding(queue.name, problem, f"create_all(engine), or {MIGRATE}"))
            continue
        if queue_options(queue).pausable and not inspector.has_table(PAUSES, queue.schema):
            problem = f"it can be paused, and the database has no table {PAUSES!r}"
            found.append(Finding(queue.name, problem, f"create_all(engine), or {MIGRATE}"))
        if sharded:
            shards = list(_check_vschema(connection, queue))
            found += shards
            if any(finding.is_error for finding in shards):
                continue  # vtgate refuses all queries of such a table.
        found += _check_columns(inspector, queue)
        found += _check_indexes(inspector, queue)
        found += _check_order(inspector, queue)
        if inspector.dialect.supports_comments:
            found += _check_comment(inspector, queue, vitess=vitess)
        found += _check_rows(connection, inspector, queue)
    if vitess:
        found += _check_keyspace(connection)
        found += _check_flush_delay(connection.engine)
    return _errors_first(found)


def _check_ticks(
    connection: Connection, inspector: Inspector, queues: Iterable[Table], *, vitess: bool
) -> Iterator[Finding]:
    """Check the table of last ticks, where periodic messages are used."""
    if not any(has_ticks_table(queue.metadata) for queue in queues):
        return
    if vitess and is_sharded(connection, TICKS):
        yield Finding(
            TICKS.name,
            "schedulers refuse a sharded keyspace, where tick and message don't commit as one",
            "schedule in an unsharded keyspace",
            is_error=False,
        )
    elif not inspector.has_table(TICKS.name):
        yield Finding(
            TICKS.name, "the database has no such table", f"create_all(engine), or {MIGRATE}"
        )


def _errors_first(found: Iterable[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(found), key=lambda finding: not finding.is_error)


def _no_locks_on_shard(target: str) -> Finding:
    """Return the problem of transactions that aren't begun with BEGIN, as SQLAlchemy does it.

    Seen on Vitess 23 and 24 with each target that names a shard, and with no other: ``ks:0``,
    ``ks:-80`` and ``ks:-80@primary``, but not ``ks`` and ``ks@primary``.
    """
    keyspace = target.partition(":")[0]
    return Finding(
        target,
        "the URL names a shard: from Vitess 23 on, a SELECT … FOR UPDATE that comes first in a "
        "transaction locks nothing there, and two transactions may change the same rows",
        f"name the keyspace alone, {keyspace!r}; or begin each transaction with BEGIN, which a "
        "listener to the Engine's event 'begin' can send",
        is_error=False,
    )


def _is_listed(connection: Connection, queue: Table) -> bool:
    """Return whether a sharded keyspace has a table.

    vtgate hides a table without a vindex everywhere but in the information schema.
    """
    listed = select(_TABLES.c.table_name).where(
        _TABLES.c.table_schema == keyspace_of(connection, queue), _TABLES.c.table_name == queue.name
    )
    return connection.scalar(listed) is not None


def _check_columns(inspector: Inspector, queue: Table) -> Iterator[Finding]:
    existing = {c["name"]: c for c in inspector.get_columns(queue.name, queue.schema)}
    if missing := [c.name for c in queue.columns if c.name not in existing]:
        yield Finding(queue.name, f"lacks the columns {', '.join(missing)}", MIGRATE)
    key = tuple(inspector.get_pk_constraint(queue.name, queue.schema)["constrained_columns"])
    expected = LAYOUTS[queue_options(queue).layout].primary_key
    if key != expected:
        problem = f"its primary key is ({', '.join(key)}) and should be ({', '.join(expected)})"
        yield Finding(queue.name, problem, MIGRATE)


def _check_indexes(inspector: Inspector, queue: Table) -> Iterator[Finding]:
    existing = {i["name"]: i for i in inspector.get_indexes(queue.name, queue.schema)}
    is_inline = is_mysql(inspector.dialect)
    for spec in index_specs(queue_options(queue)):
        name = spec.name if is_inline else index_name(queue, spec)
        if spec.name == UNIQUE_INDEX:
            found = existing.get(name)
            if found is None or tuple(found["column_names"]) != spec.columns:
                yield Finding(
                    queue.name,
                    f"lacks the unique index {name} ({', '.join(spec.columns)}): it may have "
                    "several unsettled messages of one key",
                    MIGRATE,
                )
        elif name not in existing:
            yield Finding(queue.name, f"lacks the index {name}: each pull reads all rows", MIGRATE)


def _check_order(inspector: Inspector, queue: Table) -> Iterator[Finding]:
    order, existing = order_of(queue_options(queue)), None
    if order is not None:
        existing = existing_order(inspector, queue.name, queue.schema)
    if existing is not None and existing != order:
        problem = f"it is ordered as of {existing}, and the model is as of {order}"
        yield Finding(queue.name, problem, MIGRATE)


def _check_comment(inspector: Inspector, queue: Table, *, vitess: bool) -> Iterator[Finding]:
    comment = inspector.get_table_comment(queue.name, queue.schema)["text"] or ""
    try:
        existing = CommentOptions.from_comment(comment).to_comment()
    except InvalidQueue as error:
        problem = f"Vitess can't take it for a message table: {error}"
        yield Finding(queue.name, problem, MIGRATE, is_error=vitess)
        return
    expected = queue_options(queue).to_comment()
    if existing != expected:
        problem = f"its options are {comment!r} and the model's {expected!r}"
        yield Finding(queue.name, problem, MIGRATE, is_error=False)


def _check_rows(connection: Connection, inspector: Inspector, queue: Table) -> Iterator[Finding]:
    columns = queue.c
    names = {c["name"] for c in inspector.get_columns(queue.name, queue.schema)}
    if not {"time_next", "time_acked", "epoch"} <= names:
        return
    stuck = columns.time_acked.is_(None) & columns.time_next.is_(None)
    if count := _count(connection, queue, stuck):
        yield Finding(
            queue.name,
            f"{count} messages are neither acked nor have a time_next: they are never delivered",
            "set time_next to 0 where both are NULL",
        )
    looping = columns.time_acked.is_not(None) & columns.time_next.is_not(None)
    if count := _count(connection, queue, looping):
        yield Finding(
            queue.name,
            f"{count} acked messages have a time_next: old versions of Vitess deliver them again",
            "set time_next to NULL where time_acked isn't",
        )
    if count := _count(connection, queue, columns.epoch.is_(None)):
        yield Finding(
            queue.name,
            f"{count} messages have no epoch: they can be delivered, but not failed or retried",
            "set epoch to 0 where it is NULL",
        )


def _count(connection: Connection, queue: Table, condition: ColumnElement[bool]) -> int:
    counting = select(func.count()).select_from(queue).where(condition)
    return int(connection.scalar(counting) or 0)


def _check_vschema(connection: Connection, queue: Table) -> Iterator[Finding]:
    options = queue_options(queue)
    vindexes = vindexes_of(connection, queue)
    if not vindexes:
        remedy = (
            f"op.add_vindex({queue.name!r}, {list(options.shard_by)}, {options.vindex!r}) in a "
            "migration"
            if options.shard_by
            else "set shard_by and vindex in its QueueOptions to those of the data it commits with"
        )
        problem = "the keyspace is sharded and the vschema has no vindex for it: no row can be read"
        yield Finding(queue.name, problem, remedy)
        return
    first = vindexes[0]
    if options.shard_by is None:
        yield Finding(
            queue.name,
            f"the model doesn't say that it is sharded by {', '.join(first.columns)}: "
            "each settlement queries all shards",
            f"set shard_by={list(first.columns)}, vindex={first.name!r} in its QueueOptions",
            is_error=False,
        )
    elif first.columns != options.shard_by or first.name != options.vindex:
        yield Finding(
            queue.name,
            f"is sharded by {first.name}({', '.join(first.columns)}), and the model says "
            f"{options.vindex}({', '.join(options.shard_by)}): each settlement queries all shards",
            "create a queue of another name, and receive from this one until it is empty",
            is_error=False,
        )


def _check_keyspace(connection: Connection) -> Iterator[Finding]:
    """Check all message tables, because a malformed one harms the others."""
    harm = "Vitess has stopped reloading the schema of its tablets: new tables are not found"
    message_tables = select(_TABLES.c.table_name, _TABLES.c.table_comment).where(
        _TABLES.c.table_schema == func.database(), _TABLES.c.table_comment.like(f"{MARK}%")
    )
    for name, comment in connection.execute(message_tables).all():
        try:
            CommentOptions.from_comment(comment)
        except InvalidQueue as error:
            yield Finding(name, f"{error}. {harm}", "correct its comment, or drop it")
        # vtgate shows a table without a vindex only in the information schema.
        of_table = select(_COLUMNS.c.column_name).where(
            _COLUMNS.c.table_schema == func.database(), _COLUMNS.c.table_name == name
        )
        columns = set(connection.scalars(of_table))
        missing = [required for required in VITESS_REQUIRES if required not in columns]
        if missing and vitess_major(connection) >= 6:
            legacy = " (it has the classic layout)" if missing == ["priority"] else ""
            yield Finding(
                name,
                f"lacks the columns {', '.join(missing)}{legacy}. {harm}",
                "set layout='portable' and run the migration that autogenerate makes",
            )


def _check_flush_delay(engine: Engine) -> Iterator[Finding]:
    """Measure how long vtgate holds back rows that don't fill its buffer.

    vtgate doesn't report its settings. But a streamed result begins with the names of its columns,
    and they stay in the buffer while a row of 20 KB is complete and the next one isn't.
    """
    if not is_pymysql(engine.dialect):
        return  # No other driver can stream.
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
        connection.execute(text("SET workload = 'olap'"))
        delay = min(_time_until_columns(connection) for _ in range(3))
        connection.invalidate()  # The pool's next user expects the OLTP workload.
    if delay > MAX_FLUSH_DELAY:
        yield Finding(
            "vtgate",
            f"holds back streamed rows for about {delay * 1000:.0f} ms "
            "(--mysql-server-flush-delay): transport='stream' delivers late",
            "none, if subscribers pull, as they do by default; otherwise set the flag to 1ms",
            is_error=False,
        )


def _time_until_columns(connection: Connection) -> float:
    # Without SQLAlchemy, which would wait for the first row as well.
    cursor: Any = connection.connection.cursor(SSCursor)
    start = time.monotonic()
    cursor.execute(_SLOW_ROWS)
    seconds = time.monotonic() - start
    cursor.fetchall()
    cursor.close()
    return seconds
