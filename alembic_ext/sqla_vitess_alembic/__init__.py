"""Alembic for message queues: autogenerate, and operations for queues, vschema and online DDL.

Installing the package is enough: Alembic loads :mod:`.plugin` by its entry point.
"""

from __future__ import annotations

from sqla_vitess_messages.extras import needs_extra

with needs_extra("alembic", "alembic"):
    import alembic  # noqa: F401  # First, because it imports this package's plugin.

from .online_ddl import MigrationFailed, use_ddl_strategy
from .operations import (
    AlterMessageQueueOp,
    ConvertFromMessageQueueOp,
    ConvertToMessageQueueOp,
    CreateMessageQueueOp,
    DropMessageQueueOp,
)
from .order_operations import AlterMessageOrderOp
from .vschema_operations import (
    AddVindexOp,
    AddVschemaTableOp,
    CreateSequenceOp,
    CreateVindexOp,
    DropSequenceOp,
    DropVindexOp,
    DropVschemaTableOp,
    RemoveVindexOp,
)

__all__ = [
    "AddVindexOp",
    "AddVschemaTableOp",
    "AlterMessageOrderOp",
    "AlterMessageQueueOp",
    "ConvertFromMessageQueueOp",
    "ConvertToMessageQueueOp",
    "CreateMessageQueueOp",
    "CreateSequenceOp",
    "CreateVindexOp",
    "DropMessageQueueOp",
    "DropSequenceOp",
    "DropVindexOp",
    "DropVschemaTableOp",
    "MigrationFailed",
    "RemoveVindexOp",
    "use_ddl_strategy",
]
