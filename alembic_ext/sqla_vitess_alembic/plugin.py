"""The plugin that Alembic loads by its entry point ``alembic.plugins``.

The name of the entry point begins with ``alembic.autogenerate.``: those are the plugins that
autogenerate uses unless ``env.py`` selects others. Alembic imports this module while it is being
imported itself, so this module and all that it imports may use only what Alembic has loaded by
then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from . import (
    render,  # noqa: F401  # Registers the renderers.
    vschema_operations,  # noqa: F401  # Registers the operations on the vschema.
)
from .compare import indexes, layout, options, order, ordered, queues, ticks, vindexes

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


def setup(plugin: Plugin) -> None:
    """Register the comparators of queues. Alembic calls this.

    :param plugin: the object that Alembic made for the entry point.
    """
    for module in (queues, ticks, indexes, layout, options, ordered, vindexes, order):
        module.setup(plugin)


class _PluginModule(ModuleType):
    """A module that is also a collection of modules, of which it is the only one.

    Alembic 1.20.1 and newer accept an entry point that refers to a module. Alembic 1.18.0 to 1.20.0
    iterate over whatever it refers to, and expect modules (Alembic's issue 1873): with a plain
    module, ``import alembic`` raises a TypeError in every application of the environment. A list of
    modules would suit those versions, but newer ones warn of it as deprecated.
    """

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _PluginModule
