"""The vschema of a Vitess keyspace, which determines by its vindexes the shard of each row.

The statements are instances of :class:`~sqlalchemy.schema.ExecutableDDLElement` and are executed
like any other; :func:`alter_vschema` executes them safely beside other changes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import (
    BindParameter,
    Connection,
    Engine,
    Integer,
    Table,
    bindparam,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler
from sqlalchemy.sql.expression import Executable

from ..errors import QueueNotFound

__all__ = [
    "AddSequence",
    "AddTable",
    "AddVindex",
    "CreateVindex",
    "DropSequence",
    "DropTable",
    "DropVindex",
    "RemoveVindex",
    "Vindex",
    "alter_vschema",
    "is_sharded",
    "keyspace_of",
    "reserve_ids",
    "vindexes_of",
    "wait_until_routable",
]

FUNCTIONAL = frozenset(
    (
        "binary",
        "binary_md5",
        "hash",
        "null",
        "numeric",
        "reverse_bits",
        "unicode_loose_md5",
        "unicode_loose_xxhash",
        "xxhash",
    )
)
"""The types of vindex that need no parameters, and so no :class:`CreateVindex` first."""

ROUTABLE_TIMEOUT = 30.0
"""Seconds to wait until vtgate can route to a new table."""

LOCK = "sqla_vitess_messages.vschema"
"""The name of the lock that is held during a change of the vschema."""

LOCK_TIMEOUT = 30
"""Whole seconds to wait for the lock; after that the change is made without it."""

PROPAGATION_DELAY = 0.2
"""Seconds, at least, to wait until every vtgate has received a change, as none reports that.

The vtgate that made the change may receive an earlier one in this time, too, and then doesn't know
the later one for a moment. Nor does it while it rebuilds its view because of a new table, which it
began before the change.
"""

ATTEMPTS = 3
"""How often a change is tried that another one, made without the lock, has overtaken."""

_ROUTABLE_POLL_INTERVAL = 0.05


class _AlterVschema(ExecutableDDLElement):
    """The base of the statements.

    :param name: the name of the table, the vindex or the sequence.
    :param keyspace: default: the connection's.
    """

    verb = ""

    def __init__(self, name: str, *, keyspace: str | None = None) -> None:
        self.name = name
        self.keyspace = keyspace


class AddTable(_AlterVschema):
    """Add a table of an unsharded keyspace, so that it is found by its name alone."""

    verb = "ADD TABLE"


class DropTable(_AlterVschema):
    """Remove a table and its vindexes from the vschema."""

    verb = "DROP TABLE"


class AddSequence(_AlterVschema):
    """Declare that a table of an unsharded keyspace is a sequence."""

    verb = "ADD SEQUENCE"


class DropSequence(_AlterVschema):
    """Remove a sequence from the vschema."""

    verb = "DROP SEQUENCE"


class DropVindex(_AlterVschema):
    """Drop a vindex that no table uses."""

    verb = "DROP VINDEX"


class CreateVindex(_AlterVschema):
    """Create a vindex with parameters, such as a lookup vindex or one of several columns.

    :param name: the vindex's name.
    :param type_: such as ``"consistent_lookup_unique"``.
    :param params: such as ``{"table": "main.lookup", "from": "email", "to": "keyspace_id"}``.
    """

    verb = "CREATE VINDEX"

    def __init__(
        self,
        name: str,
        type_: str,
        params: Mapping[str, str] | None = None,
        *,
        keyspace: str | None = None,
    ) -> None:
        super().__init__(name, keyspace=keyspace)
        self.type = type_
        self.parameters = dict(params or {})


class AddVindex(_AlterVschema):
    """Add a vindex to a table. Its first one determines a row's shard, any other leads to it.

    :param name: the table's name.
    :param columns: the names of the table's columns.
    :param vindex: a vindex type that needs no parameters, such as ``"hash"``, or the name of an
        existing vindex.
    """

    def __init__(
        self, name: str, columns: Sequence[str], vindex: str, *, keyspace: str | None = None
    ) -> None:
        super().__init__(name, keyspace=keyspace)
        self.columns = tuple(columns)
        self.vindex = vindex


class RemoveVindex(_AlterVschema):
    """Remove a vindex from a table.

    :param name: the table's name.
    :param vindex: the vindex's name.
    """

    def __init__(self, name: str, vindex: str, *, keyspace: str | None = None) -> None:
        super().__init__(name, keyspace=keyspace)
        self.vindex = vindex


def _qualified(element: _AlterVschema, compiler: DDLCompiler) -> str:
    quote = compiler.preparer.quote_identifier
    return ".".join(quote(name) for name in (element.keyspace, element.name) if name)


@compiles(_AlterVschema)
def _compile_alter(element: _AlterVschema, compiler: DDLCompiler, **_kw: object) -> str:
    return f"ALTER VSCHEMA {element.verb} {_qualified(element, compiler)}"


@compiles(CreateVindex)
def _compile_create_vindex(element: CreateVindex, compiler: DDLCompiler, **_kw: object) -> str:
    quote = compiler.preparer.quote_identifier
    # Quoted as identifiers, because vtgate would keep the quotes of a string literal.
    params = ", ".join(
        f"{quote(name)} = {quote(value)}" for name, value in element.parameters.items()
    )
    using = f"{_compile_alter(element, compiler)} USING {quote(element.type)}"
    return f"{using} WITH {params}" if params else using


@compiles(AddVindex)
def _compile_add_vindex(element: AddVindex, compiler: DDLCompiler, **_kw: object) -> str:
    quote = compiler.preparer.quote_identifier
    table, vindex = _qualified(element, compiler), quote(element.vindex)
    columns = ", ".join(quote(name) for name in element.columns)
    adding = f"ALTER VSCHEMA ON {table} ADD VINDEX {vindex} ({columns})"
    return f"{adding} USING {vindex}" if element.vindex in FUNCTIONAL else adding


@compiles(RemoveVindex)
def _compile_remove_vindex(element: RemoveVindex, compiler: DDLCompiler, **_kw: object) -> str:
    vindex = compiler.preparer.quote_identifier(element.vindex)
    return f"ALTER VSCHEMA ON {_qualified(element, compiler)} DROP VINDEX {vindex}"


class _ShowVindexes(Executable, ClauseElement):
    """``SHOW VSCHEMA VINDEXES ON <table>``."""

    inherit_cache = False

    def __init__(self, table: Table) -> None:
        self.table = table


@compiles(_ShowVindexes)
def _compile_show_vindexes(element: _ShowVindexes, compiler: SQLCompiler, **_kw: object) -> str:
    return f"SHOW VSCHEMA VINDEXES ON {compiler.preparer.format_table(element.table)}"


@dataclass(frozen=True)
class Vindex:
    """A vindex of a table. A table's first vindex determines a row's shard."""

    name: str
    type: str
    columns: tuple[str, ...]


def keyspace_of(connection: Connection, table: Table | None = None) -> str:
    """Return the keyspace of a table: its schema, or else the connection's database."""
    schema = None if table is None else connection.schema_for_object(table)
    # A connection may target a shard or a type of tablet, as with ks:-80 or ks@primary.
    return schema or re.split("[:@]", str(connection.scalar(text("SELECT DATABASE()"))))[0]


def is_sharded(connection: Connection, table: Table | None = None) -> bool:
    """Return whether a keyspace of Vitess is sharded: see :func:`keyspace_of`."""
    keyspace = keyspace_of(connection, table)
    rows = connection.execute(text("SHOW VSCHEMA KEYSPACES"))
    return any(row[0] == keyspace and row[1] == "true" for row in rows)


def vindexes_of(connection: Connection, table: Table) -> list[Vindex]:
    """Return the vindexes of a table; an empty list when the vschema lacks the table."""
    try:
        rows = connection.execute(_ShowVindexes(table)).all()
    except DBAPIError as error:
        if "VT05005" in str(error.orig):
            return []
        raise
    return [Vindex(row[1], row[2], tuple(row[0].split(", "))) for row in rows]


def alter_vschema(connection: Connection, statement: ExecutableDDLElement) -> None:
    """Execute a statement on the vschema, while no other user of this library executes one.

    vtgate writes the vschema of all keyspaces as it has it in memory, with its own change to one of
    them. So one of two simultaneous changes may be lost.

    :param statement: one of this module's statements.
    """
    for _ in range(ATTEMPTS):
        connection.execute(select(func.get_lock(LOCK, LOCK_TIMEOUT)))
        try:
            started_at = time.monotonic()
            connection.execute(statement)
            # Servers that are slow to make a change are slow to propagate it, too.
            time.sleep(max(PROPAGATION_DELAY, time.monotonic() - started_at))
        except DBAPIError as error:
            # Another client was faster, without the lock.
            if "stale" not in str(error.orig).lower():
                raise
        else:
            return
        finally:
            connection.execute(select(func.release_lock(LOCK)))
    connection.execute(statement)


def wait_until_routable(
    connection: Connection, table: Table, timeout: float = ROUTABLE_TIMEOUT
) -> None:
    """Wait until vtgate can route to a new table, and the tablets have it.

    In a sharded keyspace that includes its vindexes, without which vtgate can read, but not write.

    :param timeout: seconds.
    :raises QueueNotFound: when they can't in time.
    """
    end = time.monotonic() + timeout
    needs_vindex = is_sharded(connection, table)
    probe = select(*table.primary_key.columns).limit(1)

    def is_routable() -> bool:
        with suppress(DBAPIError):
            connection.execute(probe)
            return not needs_vindex or bool(vindexes_of(connection, table))
        return False

    while True:
        if is_routable():
            time.sleep(PROPAGATION_DELAY)
            if is_routable():
                return
        if time.monotonic() >= end:
            raise QueueNotFound(
                f"table {table.name!r} was created, but vtgate can't route to it after "
                f"{timeout:g} s; a malformed message table in the same keyspace may be the cause: "
                "run 'sqla-vitess-messages check'"
            )
        time.sleep(_ROUTABLE_POLL_INTERVAL)


class _NextValues(Executable, ClauseElement):
    """``SELECT NEXT <count> VALUES FROM <sequence>``."""

    inherit_cache = False

    def __init__(self, sequence: str) -> None:
        self.sequence = sequence
        self.count: BindParameter[int] = bindparam("count", type_=Integer)


@compiles(_NextValues)
def _compile_next_values(element: _NextValues, compiler: SQLCompiler, **kw: object) -> str:
    names = ".".join(map(compiler.preparer.quote_identifier, element.sequence.split(".")))
    count = compiler.process(element.count, **kw)
    return f"SELECT NEXT {count} VALUES FROM {names}"  # noqa: S608  # The names are quoted.


def reserve_ids(engine: Engine, sequence: str, count: int) -> range:
    """Reserve numbers of a Vitess sequence, as ids of future messages.

    This uses a connection of its own: a sequence is in another keyspace than sharded tables, so a
    transaction that read it would span both.

    :param sequence: the sequence's table, such as ``"main.message_ids"``.
    :param count: how many numbers.
    """
    with engine.connect() as connection:
        first = connection.execute(_NextValues(sequence), {"count": count}).scalar_one()
    return range(int(first), int(first) + count)
