"""The operation that orders a queue, orders it by other columns, or ends its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Index, MetaData, Table
from sqlalchemy.schema import DropIndex

from sqla_vitess_messages import InvalidArgument, QueueOptions
from sqla_vitess_messages.table.build import index_name
from sqla_vitess_messages.table.order import (
    OPEN,
    SEQ,
    Order,
    make_order_columns,
    order_index,
    order_of,
)
from sqla_vitess_messages.vitess.server import is_mysql

from .alter_table import AlterTable, Clause, add_index, drop_column, drop_index, place_column

__all__ = ["AlterMessageOrderOp"]


@Operations.register_operation("alter_message_order")
class AlterMessageOrderOp(MigrateOperation):
    """Change by which columns a queue is ordered.

    :param order: None ends the order.
    :param existing: None for a queue that isn't ordered.
    """

    def __init__(
        self, name: str, order: Order | None, existing: Order | None, *, schema: str | None = None
    ) -> None:
        self.name = name
        self.order = order
        self.existing = existing
        self.schema = schema

    @classmethod
    def alter_message_order(
        cls,
        operations: Operations,
        name: str,
        *,
        ordered_by: str | Sequence[str] | None = None,
        halt_on_dead: bool = False,
        existing_ordered_by: str | Sequence[str] | None = None,
        existing_halt_on_dead: bool = False,
        schema: str | None = None,
    ) -> None:
        """Order a queue, order it by other columns, or end its order.

        Messages that are in a queue before it is ordered come before all others of their key, and
        one at a time, but in no order.

        :param ordered_by: the columns of the key. Default: the order ends.
        :param halt_on_dead: as of :class:`~sqla_vitess_messages.QueueOptions`.
        :param existing_ordered_by: the columns by which the table is ordered. Default: it isn't.
        :param existing_halt_on_dead: whether it halts.
        """
        order, existing = (
            order_of(QueueOptions(ordered_by=by, halt_on_dead=halts))
            for by, halts in (
                (ordered_by, halt_on_dead),
                (existing_ordered_by, existing_halt_on_dead),
            )
        )
        if order is None and existing is None:
            raise InvalidArgument(
                "ordered_by=None and existing_ordered_by=None: give one of the two, or both"
            )
        operations.invoke(cls(name, order, existing, schema=schema))

    def reverse(self) -> AlterMessageOrderOp:
        return AlterMessageOrderOp(self.name, self.existing, self.order, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("alter_message_order", self.name, self.order, self.existing)


@Operations.implementation_for(AlterMessageOrderOp)
def _alter_order(operations: Operations, operation: AlterMessageOrderOp) -> None:
    if is_mysql(operations.migration_context.dialect):
        _alter_at_once(operations, operation)
    else:
        _alter_in_steps(operations, operation)


def _alter_at_once(operations: Operations, operation: AlterMessageOrderOp) -> None:
    order, existing = operation.order, operation.existing
    clauses: list[Clause] = []
    if existing is not None:
        clauses += [drop_index(order_index(existing.ordered_by)), drop_column(OPEN)]
        if order is None:
            clauses.append(drop_column(SEQ))
    table = Table(operation.name, MetaData(), schema=operation.schema)
    if order is not None:
        for new in make_order_columns(halt_on_dead=order.halt_on_dead):
            table.append_column(new)
            if existing is None or new.name == OPEN:
                clauses.append(place_column("ADD", new, None))
        clauses.append(add_index(order_index(order.ordered_by)))
    operations.execute(AlterTable(table, clauses))


def _alter_in_steps(operations: Operations, operation: AlterMessageOrderOp) -> None:
    """Alter the table in SQLite, which makes one change at a time."""
    order, existing = operation.order, operation.existing
    table = Table(operation.name, MetaData(), schema=operation.schema)
    for column in make_order_columns(halt_on_dead=order is not None and order.halt_on_dead):
        table.append_column(column)
    if existing is not None:
        name = index_name(table, order_index(existing.ordered_by))
        operations.execute(DropIndex(Index(name, table.c[SEQ])))
        for column_name in [OPEN] if order is not None else [OPEN, SEQ]:
            operations.execute(AlterTable(table, [drop_column(column_name)]))
    if order is not None:
        for new in make_order_columns(halt_on_dead=order.halt_on_dead, stored=False):
            if existing is None or new.name == OPEN:
                operations.add_column(operation.name, new, schema=operation.schema)
        _create_index(operations, operation, order)


def _create_index(operations: Operations, operation: AlterMessageOrderOp, order: Order) -> None:
    spec = order_index(order.ordered_by)
    table = Table(operation.name, MetaData(), schema=operation.schema)
    operations.create_index(
        index_name(table, spec), operation.name, list(spec.columns), schema=operation.schema
    )
