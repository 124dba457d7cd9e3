"""Find what ``package.module:name`` names on the command line."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from sqlalchemy import MetaData, Table

from .ddl import OPTIONS_KEY
from .errors import InvalidArgument

__all__ = ["load", "load_queues"]


def load(target: str) -> Any:
    """Import what a target names.

    :param target: ``package.module:name``; the name may have dots.
    :raises InvalidArgument: when there is no such thing.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise InvalidArgument(f"{target!r}: expected package.module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")  # As with python -m.
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InvalidArgument(f"{target!r}: there is no module {error.name!r}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise InvalidArgument(f"{target!r}: {found!r} has no {name!r}")
        found = getattr(found, name)
    return found


def load_queues(target: str) -> list[Table]:
    """Return the tables of the queues below a declarative base, or in a MetaData.

    :raises InvalidArgument: when there are none.
    """
    found = load(target)
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise InvalidArgument(f"{target!r}: {found!r} is no declarative base and no MetaData")
    queues = [table for table in metadata.sorted_tables if OPTIONS_KEY in table.info]
    if not queues:
        raise InvalidArgument(f"{target!r}: has no models with MessageQueueMixin")
    return queues
