"""What Alembic calls.

The name of the entry point begins with ``alembic.autogenerate.``, which is what Alembic compares by
unless ``env.py`` says otherwise. Alembic imports this module while it is being imported itself: it
and what it imports may use only what Alembic has loaded by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.util import DispatchPriority

from . import (
    render,  # noqa: F401  # Registers itself.
    vschema_operations,  # noqa: F401  # Registers itself.
)
from .compare import compare_queues, leave_out_indexes

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


def setup(plugin: Plugin) -> None:
    """Register the comparison of queues."""
    plugin.add_autogenerate_comparator(
        leave_out_indexes, "autogenerate", "message_queues", priority=DispatchPriority.FIRST
    )
    plugin.add_autogenerate_comparator(
        compare_queues, "autogenerate", "message_queues", priority=DispatchPriority.LAST
    )
