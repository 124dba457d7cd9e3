"""Render the operations as the code of a migration script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import (
    _alembic_autogenerate_prefix,
    _render_column,
    _render_constraint,
    renderers,
)
from sqlalchemy import Column, Constraint

from sqla_vitess_messages import QueueOptions
from sqla_vitess_messages.table.options import to_number
from sqla_vitess_messages.table.order import Order, order_of

from .operations import (
    AlterMessageQueueOp,
    ConvertFromMessageQueueOp,
    ConvertToMessageQueueOp,
    CreateMessageQueueOp,
    DropMessageQueueOp,
)
from .order_operations import AlterMessageOrderOp
from .vschema_operations import AddVindexOp, RemoveVindexOp

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

__all__: list[str] = []

_ALWAYS = ("ack_wait", "purge_after", "batch_size", "cache_size", "poller_interval")
_UNLESS_NONE = ("min_backoff", "max_backoff", "message_cols", "shard_by", "vindex", "unique_by")


def _call(context: AutogenContext, name: str, arguments: Sequence[str]) -> str:
    prefix = _alembic_autogenerate_prefix(context)
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"{prefix}{name}(\n{lines})"


def _one_line(context: AutogenContext, name: str, arguments: Sequence[str]) -> str:
    return f"{_alembic_autogenerate_prefix(context)}{name}({', '.join(arguments)})"


def _options(options: QueueOptions) -> list[str]:
    """Return the options as keyword arguments.

    Defaults are rendered, too, so that a later version's defaults don't change old migrations.
    """
    names = list(_ALWAYS)
    names += [name for name in _UNLESS_NONE if getattr(options, name) is not None]
    arguments = []
    for name in names:
        value = getattr(options, name)
        if isinstance(value, tuple):
            value = list(value)
        arguments.append(f"{name}={to_number(value) if isinstance(value, float) else repr(value)}")
    if options.layout != "portable":
        arguments.append(f"layout={options.layout!r}")
    return arguments


def _order(order: Order | None, prefix: str = "") -> list[str]:
    """Return the columns by which a queue is ordered as keyword arguments."""
    if order is None:
        return []
    arguments = [f"{prefix}ordered_by={list(order.ordered_by)!r}"]
    return arguments + ([f"{prefix}halt_on_dead=True"] if order.halt_on_dead else [])


def _schema(operation: Any) -> list[str]:
    return [] if operation.schema is None else [f"schema={operation.schema!r}"]


@renderers.dispatch_for(CreateMessageQueueOp)
def _create(context: AutogenContext, operation: CreateMessageQueueOp) -> str:
    arguments = [repr(operation.name)]
    for item in operation.payload:
        rendered: str | None
        if isinstance(item, Column):
            rendered = _render_column(item, context)
        else:
            assert isinstance(item, Constraint)
            rendered = _render_constraint(item, context, None)
        if rendered:
            arguments.append(str(rendered))
    arguments += _options(operation.options) + _order(order_of(operation.options))
    for name, value in sorted(operation.table_options.items()):
        arguments.append(f"{name.replace(' ', '_')}={value!r}")
    return _call(context, "create_message_queue", arguments + _schema(operation))


@renderers.dispatch_for(DropMessageQueueOp)
def _drop(context: AutogenContext, operation: DropMessageQueueOp) -> str:
    return _one_line(context, "drop_message_queue", [repr(operation.name), *_schema(operation)])


@renderers.dispatch_for(AlterMessageQueueOp)
def _alter(context: AutogenContext, operation: AlterMessageQueueOp) -> str:
    arguments = [repr(operation.name), *_options(operation.options)]
    if operation.existing_layout != operation.options.layout:
        arguments.append(f"existing_layout={operation.existing_layout!r}")
    if operation.existing_unique_by is not None:
        arguments.append(f"existing_unique_by={list(operation.existing_unique_by)!r}")
    return _call(context, "alter_message_queue", arguments + _schema(operation))


@renderers.dispatch_for(ConvertToMessageQueueOp)
def _convert_to(context: AutogenContext, operation: ConvertToMessageQueueOp) -> str:
    arguments = [repr(operation.name), *_options(operation.options)]
    arguments.append(f"existing_rows={operation.existing_rows!r}")
    return _call(context, "convert_to_message_queue", arguments + _schema(operation))


@renderers.dispatch_for(ConvertFromMessageQueueOp)
def _convert_from(context: AutogenContext, operation: ConvertFromMessageQueueOp) -> str:
    arguments = [repr(operation.name)]
    if operation.options.layout != "portable":
        arguments.append(f"layout={operation.options.layout!r}")
    if operation.options.unique_by is not None:
        arguments.append(f"unique_by={list(operation.options.unique_by)!r}")
    if operation.autoincrement:
        arguments.append("autoincrement=True")
    return _one_line(context, "convert_from_message_queue", arguments + _schema(operation))


@renderers.dispatch_for(AlterMessageOrderOp)
def _alter_order(context: AutogenContext, operation: AlterMessageOrderOp) -> str:
    arguments = [repr(operation.name), *_order(operation.order)]
    arguments += _order(operation.existing, "existing_")
    return _one_line(context, "alter_message_order", arguments + _schema(operation))


@renderers.dispatch_for(AddVindexOp)
def _add_vindex(context: AutogenContext, operation: AddVindexOp) -> str:
    arguments = [repr(operation.name), repr(operation.columns), repr(operation.vindex)]
    return _one_line(context, "add_vindex", arguments)


@renderers.dispatch_for(RemoveVindexOp)
def _remove_vindex(context: AutogenContext, operation: RemoveVindexOp) -> str:
    arguments = [repr(operation.name), repr(operation.vindex)]
    return _one_line(context, "remove_vindex", arguments)
