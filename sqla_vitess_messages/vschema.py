"""The vschema of a Vitess keyspace: which columns of a table decide about a row's shard.

The statements are :class:`~sqlalchemy.schema.ExecutableDDLElement`, to be executed like any other.
"""

from __future__ import annotations

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

from .errors import QueueNotFound

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
    "reserve_ids",
    "vindexes_of",
    "wait_until_known",
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

KNOWN_WITHIN = 30.0
"""Seconds to wait until vtgate can write to a new table."""

LOCK = "sqla_vitess_messages.vschema"
"""The name of the lock that a change of the vschema is made under."""

LOCKED_WITHIN = 30
"""Seconds to wait for the lock; then it is done without. Vitess takes whole ones."""

PROPAGATION = 0.2
"""Seconds until all vtgates have heard of a change; they don't tell. The one that made it hears of
an earlier one in that time, too, and then forgets the later one for a moment.
"""

ATTEMPTS = 3


class _AlterVschema(ExecutableDDLElement):
    """What all these statements have in common.

    :param name: of the table, the vindex or the sequence.
    :param keyspace: default: the connection's.
    """

    verb = ""

    def __init__(self, name: str, *, keyspace: str | None = None) -> None:
        self.name = name
        self.keyspace = keyspace


class AddTable(_AlterVschema):
    """Tell vtgate of a table of an unsharded keyspace, so that it is found by its name alone."""

    verb = "ADD TABLE"


class DropTable(_AlterVschema):
    """Let vtgate forget a table and its vindexes."""

    verb = "DROP TABLE"


class AddSequence(_AlterVschema):
    """Tell vtgate that a table of an unsharded keyspace is a sequence."""

    verb = "ADD SEQUENCE"


class DropSequence(_AlterVschema):
    """Let vtgate forget a sequence."""

    verb = "DROP SEQUENCE"


class DropVindex(_AlterVschema):
    """Drop a vindex that no table uses."""

    verb = "DROP VINDEX"


class CreateVindex(_AlterVschema):
    """Make a vindex with parameters: a lookup, or one over several columns.

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
    """Let columns of a table decide about a row's shard (its first vindex), or lead to it.

    :param name: the table's.
    :param columns: the names of its columns.
    :param vindex: a type that needs no parameters, such as ``"hash"``, or the name of a vindex
        that there is already.
    """

    def __init__(
        self, name: str, columns: Sequence[str], vindex: str, *, keyspace: str | None = None
    ) -> None:
        super().__init__(name, keyspace=keyspace)
        self.columns = tuple(columns)
        self.vindex = vindex


class RemoveVindex(_AlterVschema):
    """Take a vindex off a table.

    :param name: the table's.
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
    # As identifiers: of a string literal vtgate would keep the quotes.
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
    """A vindex of a table. The first one of a table decides about a row's shard."""

    name: str
    type: str
    columns: tuple[str, ...]


def is_sharded(connection: Connection) -> bool:
    """Say whether the connection's database is a sharded keyspace of Vitess."""
    keyspace, _, _shard = str(connection.scalar(text("SELECT DATABASE()"))).partition(":")
    rows = connection.execute(text("SHOW VSCHEMA KEYSPACES"))
    return any(row[0] == keyspace and row[1] == "true" for row in rows)


def vindexes_of(connection: Connection, table: Table) -> list[Vindex]:
    """Return the vindexes of a table; none when the vschema doesn't have the table."""
    try:
        rows = connection.execute(_ShowVindexes(table)).all()
    except DBAPIError as error:
        if "VT05005" in str(error.orig):
            return []
        raise
    return [Vindex(row[1], row[2], tuple(row[0].split(", "))) for row in rows]


def alter_vschema(connection: Connection, statement: ExecutableDDLElement) -> None:
    """Execute a statement on the vschema, one at a time among the users of this library.

    vtgate writes what it remembers of all keyspaces, with its own change to one: of two changes at
    a time, one may be lost.

    :param statement: one of this module's.
    """
    for _ in range(ATTEMPTS):
        connection.execute(select(func.get_lock(LOCK, LOCKED_WITHIN)))
        try:
            connection.execute(statement)
            time.sleep(PROPAGATION)
        except DBAPIError as error:
            # Somebody else was faster, without the lock.
            if "stale" not in str(error.orig).lower():
                raise
        else:
            return
        finally:
            connection.execute(select(func.release_lock(LOCK)))
    connection.execute(statement)


def wait_until_known(connection: Connection, table: Table, within: float = KNOWN_WITHIN) -> None:
    """Wait until vtgate and the tablets know a new table.

    :param within: seconds.
    :raises QueueNotFound: when they don't in time.
    """
    deadline = time.monotonic() + within
    looking = select(*table.primary_key.columns).limit(1)
    while True:
        with suppress(DBAPIError):
            connection.execute(looking)
            time.sleep(PROPAGATION)
            connection.execute(looking)
            return
        if time.monotonic() >= deadline:
            raise QueueNotFound(
                f"table {table.name!r} was created, but vtgate doesn't know it after {within:g} s; "
                "a malformed message table in the same keyspace would be a reason: "
                "run 'sqla-vitess-messages check'"
            )
        time.sleep(0.05)


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
    """Take numbers from a Vitess sequence, as ids for messages to come.

    On a connection of its own: a sequence is in another keyspace than sharded tables, and reading
    it in their transaction would make that span both.

    :param sequence: the sequence's table, such as ``"main.message_ids"``.
    :param count: how many.
    """
    with engine.connect() as connection:
        first = connection.execute(_NextValues(sequence), {"count": count}).scalar_one()
    return range(int(first), int(first) + count)
