"""Operations on the vschema of a Vitess keyspace. They do nothing on other databases.

Each takes ``keyspace``; without it the connection's own is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import BigInteger, Column, MetaData, Table, insert
from sqlalchemy.schema import CreateTable, ExecutableDDLElement
from sqlalchemy.schema import DropTable as DropTableStatement

from sqla_vitess_messages import vschema
from sqla_vitess_messages.ddl import MYSQL, is_vitess

__all__ = [
    "SEQUENCE",
    "AddVindexOp",
    "AddVschemaTableOp",
    "CreateSequenceOp",
    "CreateVindexOp",
    "DropSequenceOp",
    "DropVindexOp",
    "DropVschemaTableOp",
    "RemoveVindexOp",
    "alter_vschema",
    "targets_vitess",
]

SEQUENCE = "vitess_sequence"
"""The comment of a sequence's table."""

OFFLINE = "vitess"
"""``alembic -x vitess=…``: ``unsharded`` or ``sharded``, what the SQL of ``--sql`` is for."""


def targets_vitess(operations: Operations, *, sharded: bool = False) -> bool:
    """Say whether a migration runs on Vitess, or writes SQL for it."""
    context = operations.migration_context
    if context.dialect.name not in MYSQL:
        return False
    if context.connection is None or context.as_sql:
        environment = context.environment_context
        given = {} if environment is None else environment.get_x_argument(as_dictionary=True)
        return given.get(OFFLINE) == "sharded" or (not sharded and OFFLINE in given)
    connection = context.connection
    return is_vitess(connection) and (not sharded or vschema.is_sharded(connection))


class _VschemaOp(MigrateOperation):
    def __init__(self, name: str, *, keyspace: str | None = None) -> None:
        self.name = name
        self.keyspace = keyspace

    def statement(self) -> ExecutableDDLElement:
        """Return what is to be executed."""
        raise NotImplementedError

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.name)


@Operations.register_operation("create_vindex")
class CreateVindexOp(_VschemaOp):
    """Make a vindex with parameters: a lookup, or one over several columns."""

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
        self.params = params

    @classmethod
    def create_vindex(
        cls,
        operations: Operations,
        name: str,
        type_: str,
        params: Mapping[str, str] | None = None,
        *,
        keyspace: str | None = None,
    ) -> None:
        """Make a vindex.

        :param type_: such as ``"consistent_lookup_unique"``.
        :param params: such as ``{"table": "main.lookup", "from": "email", "to": "keyspace_id"}``.
        """
        operations.invoke(cls(name, type_, params, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.CreateVindex(self.name, self.type, self.params, keyspace=self.keyspace)

    def reverse(self) -> DropVindexOp:
        return DropVindexOp(self.name, keyspace=self.keyspace)


@Operations.register_operation("drop_vindex")
class DropVindexOp(_VschemaOp):
    """Drop a vindex that no table uses."""

    @classmethod
    def drop_vindex(cls, operations: Operations, name: str, *, keyspace: str | None = None) -> None:
        """Drop a vindex that no table uses."""
        operations.invoke(cls(name, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.DropVindex(self.name, keyspace=self.keyspace)


@Operations.register_operation("add_vindex")
class AddVindexOp(_VschemaOp):
    """Let columns of a table decide about a row's shard, or lead to it."""

    def __init__(
        self, name: str, columns: Sequence[str], vindex: str, *, keyspace: str | None = None
    ) -> None:
        super().__init__(name, keyspace=keyspace)
        self.columns = list(columns)
        self.vindex = vindex

    @classmethod
    def add_vindex(
        cls,
        operations: Operations,
        table_name: str,
        columns: Sequence[str],
        vindex: str,
        *,
        keyspace: str | None = None,
    ) -> None:
        """Give a table of a sharded keyspace a vindex; the first one decides about the shard.

        :param vindex: a type that needs no parameters, such as ``"hash"``, or the name of a vindex
            that there is already.
        """
        operations.invoke(cls(table_name, columns, vindex, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.AddVindex(self.name, self.columns, self.vindex, keyspace=self.keyspace)

    def reverse(self) -> RemoveVindexOp:
        return RemoveVindexOp(self.name, self.vindex, keyspace=self.keyspace)


@Operations.register_operation("remove_vindex")
class RemoveVindexOp(_VschemaOp):
    """Take a vindex off a table."""

    def __init__(self, name: str, vindex: str, *, keyspace: str | None = None) -> None:
        super().__init__(name, keyspace=keyspace)
        self.vindex = vindex

    @classmethod
    def remove_vindex(
        cls, operations: Operations, table_name: str, vindex: str, *, keyspace: str | None = None
    ) -> None:
        """Take a vindex off a table."""
        operations.invoke(cls(table_name, vindex, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.RemoveVindex(self.name, self.vindex, keyspace=self.keyspace)


@Operations.register_operation("add_vschema_table")
class AddVschemaTableOp(_VschemaOp):
    """Tell vtgate of a table of an unsharded keyspace."""

    @classmethod
    def add_vschema_table(
        cls, operations: Operations, table_name: str, *, keyspace: str | None = None
    ) -> None:
        """Tell vtgate of a table of an unsharded keyspace, so that others find it by its name."""
        operations.invoke(cls(table_name, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.AddTable(self.name, keyspace=self.keyspace)

    def reverse(self) -> DropVschemaTableOp:
        return DropVschemaTableOp(self.name, keyspace=self.keyspace)


@Operations.register_operation("drop_vschema_table")
class DropVschemaTableOp(_VschemaOp):
    """Let vtgate forget a table and its vindexes."""

    @classmethod
    def drop_vschema_table(
        cls, operations: Operations, table_name: str, *, keyspace: str | None = None
    ) -> None:
        """Let vtgate forget a table and its vindexes."""
        operations.invoke(cls(table_name, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.DropTable(self.name, keyspace=self.keyspace)


@Operations.register_operation("create_sequence")
class CreateSequenceOp(_VschemaOp):
    """Make a sequence in an unsharded keyspace."""

    def __init__(
        self, name: str, *, start: int = 1, cache: int = 1000, keyspace: str | None = None
    ) -> None:
        super().__init__(name, keyspace=keyspace)
        self.start = start
        self.cache = cache

    @classmethod
    def create_sequence(
        cls,
        operations: Operations,
        name: str,
        *,
        start: int = 1,
        cache: int = 1000,
        keyspace: str | None = None,
    ) -> None:
        """Make a sequence: its table, the one row in it, and its entry in the vschema.

        :param start: the first number.
        :param cache: how many numbers a tablet takes at a time.
        :param keyspace: an unsharded one.
        """
        operations.invoke(cls(name, start=start, cache=cache, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.AddSequence(self.name, keyspace=self.keyspace)

    def reverse(self) -> DropSequenceOp:
        return DropSequenceOp(self.name, keyspace=self.keyspace)


@Operations.register_operation("drop_sequence")
class DropSequenceOp(_VschemaOp):
    """Drop a sequence."""

    @classmethod
    def drop_sequence(
        cls, operations: Operations, name: str, *, keyspace: str | None = None
    ) -> None:
        """Drop a sequence, its table included."""
        operations.invoke(cls(name, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.DropSequence(self.name, keyspace=self.keyspace)


def _sequence_table(operation: _VschemaOp) -> Table:
    return Table(
        operation.name,
        MetaData(),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("next_id", BigInteger),
        Column("cache", BigInteger),
        schema=operation.keyspace,
        comment=SEQUENCE,
    )


def alter_vschema(operations: Operations, statement: ExecutableDDLElement) -> None:
    """Execute a statement on the vschema, or write it."""
    context = operations.migration_context
    if context.as_sql or context.connection is None:
        operations.execute(statement)
    else:
        vschema.alter_vschema(context.connection, statement)


def _execute(operations: Operations, operation: _VschemaOp) -> None:
    if targets_vitess(operations):
        alter_vschema(operations, operation.statement())


for _class in (
    CreateVindexOp,
    DropVindexOp,
    AddVindexOp,
    RemoveVindexOp,
    AddVschemaTableOp,
    DropVschemaTableOp,
):
    Operations.implementation_for(_class)(_execute)


@Operations.implementation_for(CreateSequenceOp)
def _create_sequence(operations: Operations, operation: CreateSequenceOp) -> None:
    if not targets_vitess(operations):
        return
    table = _sequence_table(operation)
    operations.execute(CreateTable(table))
    alter_vschema(operations, operation.statement())
    connection = operations.migration_context.connection
    if connection is not None and not operations.migration_context.as_sql:
        vschema.wait_until_known(connection, table)
    row = {"id": 0, "next_id": operation.start, "cache": operation.cache}
    operations.execute(insert(table).values(row))


@Operations.implementation_for(DropSequenceOp)
def _drop_sequence(operations: Operations, operation: DropSequenceOp) -> None:
    if targets_vitess(operations):
        alter_vschema(operations, operation.statement())
        operations.execute(DropTableStatement(_sequence_table(operation)))
