"""Import objects that the command line names as ``package.module:name``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from sqlalchemy import MetaData, Table

from ..errors import InvalidArgument
from ..table.options import is_queue

__all__ = ["load", "load_queues"]


def load(target: str) -> Any:
    """Import the object that a target names.

    :param target: ``package.module:name``; the name may have dots.
    :raises InvalidArgument: when the module or the name doesn't exist.
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
    """Return the tables of the queues of a declarative base or a MetaData.

    :param target: as in :func:`load`.
    :raises InvalidArgument: when the target is neither, or has no queues.
    """
    found = load(target)
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise InvalidArgument(f"{target!r}: {found!r} is no declarative base and no MetaData")
    queues = [table for table in metadata.sorted_tables if is_queue(table)]
    if not queues:
        raise InvalidArgument(f"{target!r}: has no models with MessageQueueMixin")
    return queues
