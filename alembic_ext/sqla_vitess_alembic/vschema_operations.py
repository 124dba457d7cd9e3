"""Operations on the vschema of a Vitess keyspace. They do nothing on other databases.

Each has the parameter ``keyspace``, whose default is the connection's keyspace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import BigInteger, Column, MetaData, Table, insert
from sqlalchemy.schema import CreateTable, ExecutableDDLElement
from sqlalchemy.schema import DropTable as DropTableStatement

from sqla_vitess_messages.vitess import vschema
from sqla_vitess_messages.vitess.server import is_mysql, is_vitess

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
"""``alembic -x vitess=…`` sets the kind of keyspace that ``--sql`` is for: sharded or unsharded."""


def targets_vitess(operations: Operations, *, sharded: bool = False) -> bool:
    """Return whether a migration runs on Vitess, or writes SQL for it.

    :param sharded: whether only a sharded keyspace counts.
    """
    context = operations.migration_context
    if not is_mysql(context.dialect):
        return False
    if context.connection is None or context.as_sql:
        environment = context.environment_context
        given = {} if environment is None else environment.get_x_argument(as_dictionary=True)
        return given.get(OFFLINE) == "sharded" or (not sharded and OFFLINE in given)
    connection = context.connection
    return is_vitess(connection) and (not sharded or vschema.is_sharded(connection))


class _VschemaOp(MigrateOperation):
    """The base of the operations.

    :param name: the name of the table, the vindex or the sequence.
    :param keyspace: default: the connection's.
    """

    def __init__(self, name: str, *, keyspace: str | None = None) -> None:
        self.name = name
        self.keyspace = keyspace

    def statement(self) -> ExecutableDDLElement:
        """Return the statement to be executed."""
        raise NotImplementedError

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.name)


@Operations.register_operation("create_vindex")
class CreateVindexOp(_VschemaOp):
    """Create a vindex with parameters, such as a lookup vindex or one of several columns."""

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
        """Create a vindex.

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
    """Add a vindex to a table. Its first one determines a row's shard, any other leads to it."""

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
        """Add a vindex to a table of a sharded keyspace; its first one determines a row's shard.

        :param columns: the names of the table's columns.
        :param vindex: a vindex type that needs no parameters, such as ``"hash"``, or the name of an
            existing vindex.
        """
        operations.invoke(cls(table_name, columns, vindex, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.AddVindex(self.name, self.columns, self.vindex, keyspace=self.keyspace)

    def reverse(self) -> RemoveVindexOp:
        return RemoveVindexOp(self.name, self.vindex, keyspace=self.keyspace)


@Operations.register_operation("remove_vindex")
class RemoveVindexOp(_VschemaOp):
    """Remove a vindex from a table."""

    def __init__(self, name: str, vindex: str, *, keyspace: str | None = None) -> None:
        super().__init__(name, keyspace=keyspace)
        self.vindex = vindex

    @classmethod
    def remove_vindex(
        cls, operations: Operations, table_name: str, vindex: str, *, keyspace: str | None = None
    ) -> None:
        """Remove a vindex from a table."""
        operations.invoke(cls(table_name, vindex, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.RemoveVindex(self.name, self.vindex, keyspace=self.keyspace)


@Operations.register_operation("add_vschema_table")
class AddVschemaTableOp(_VschemaOp):
    """Add a table of an unsharded keyspace to the vschema."""

    @classmethod
    def add_vschema_table(
        cls, operations: Operations, table_name: str, *, keyspace: str | None = None
    ) -> None:
        """Add a table of an unsharded keyspace, so that it is found by its name alone."""
        operations.invoke(cls(table_name, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.AddTable(self.name, keyspace=self.keyspace)

    def reverse(self) -> DropVschemaTableOp:
        return DropVschemaTableOp(self.name, keyspace=self.keyspace)


@Operations.register_operation("drop_vschema_table")
class DropVschemaTableOp(_VschemaOp):
    """Remove a table and its vindexes from the vschema."""

    @classmethod
    def drop_vschema_table(
        cls, operations: Operations, table_name: str, *, keyspace: str | None = None
    ) -> None:
        """Remove a table and its vindexes from the vschema."""
        operations.invoke(cls(table_name, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.DropTable(self.name, keyspace=self.keyspace)


@Operations.register_operation("create_sequence")
class CreateSequenceOp(_VschemaOp):
    """Create a sequence in an unsharded keyspace."""

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
        """Create a sequence: its table, the one row in it, and its entry in the vschema.

        :param start: the first number.
        :param cache: how many numbers a tablet reserves at a time.
        :param keyspace: an unsharded one.
        """
        operations.invoke(cls(name, start=start, cache=cache, keyspace=keyspace))

    def statement(self) -> ExecutableDDLElement:
        return vschema.AddSequence(self.name, keyspace=self.keyspace)

    def reverse(self) -> DropSequenceOp:
        return DropSequenceOp(self.name, keyspace=self.keyspace)


@Operations.register_operation("drop_sequence")
class DropSequenceOp(_VschemaOp):
    """Drop a sequence, including its table."""

    @classmethod
    def drop_sequence(
        cls, operations: Operations, name: str, *, keyspace: str | None = None
    ) -> None:
        """Drop a sequence, including its table."""
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
    """Execute a statement on the vschema, or write it to the script of ``--sql``."""
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
        vschema.wait_until_routable(connection, table)
    row = {"id": 0, "next_id": operation.start, "cache": operation.cache}
    operations.execute(insert(table).values(row))


@Operations.implementation_for(DropSequenceOp)
def _drop_sequence(operations: Operations, operation: DropSequenceOp) -> None:
    if targets_vitess(operations):
        alter_vschema(operations, operation.statement())
        operations.execute(DropTableStatement(_sequence_table(operation)))
