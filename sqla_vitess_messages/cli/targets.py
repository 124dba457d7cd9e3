"""Import objects that the command line names as ``package.module:name``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from sqlalchemy import MetaData, Table, inspect

from ..errors import InvalidArgument
from ..mixin import MessageQueueMixin
from ..shown import shown
from ..table.options import is_queue

__all__ = ["load", "load_instance", "load_model", "load_models", "load_queues"]

T = TypeVar("T")


def load(target: str) -> Any:
    """Import the object that a target names.

    :param target: ``package.module:name``; the name may have dots.
    :raises InvalidArgument: when the module or the name doesn't exist, or can't be imported.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise InvalidArgument(f"{shown(target)}: expected package.module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")  # As with python -m.
    found = _import_module(module_name, target)
    for name in path.split("."):
        if not hasattr(found, name):
            raise InvalidArgument(f"{shown(target)}: {shown(found)} has no {name!r}")
        found = getattr(found, name)
    return found


def load_instance(target: str, kind: type[T], what: str) -> T:
    """Return the object of a kind that a target names, or that the function returns it names.

    :param target: as in :func:`load`.
    :param what: the kind, for the error.
    :raises InvalidArgument: as :func:`load` does, and for any other object.
    """
    found = load(target)
    if not isinstance(found, kind) and callable(found):
        found = found()
    if not isinstance(found, kind):
        raise InvalidArgument(f"{shown(target)}: {shown(found)} is no {what}")
    return found


def _import_module(name: str, target: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # It is another module, which this one imports.
        raise InvalidArgument(f"{shown(target)}: there is no module {error.name!r}") from error


def load_queues(target: str) -> list[Table]:
    """Return the tables of the queues of a declarative base or a MetaData, or of one model.

    :param target: as in :func:`load`.
    :raises InvalidArgument: when the target is none of these, or has no queues.
    """
    found = load(target)
    if _is_model(found):
        return [found.__table__]
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise InvalidArgument(
            f"{shown(target)}: {shown(found)} is no declarative base, no MetaData and no model "
            "with MessageQueueMixin"
        )
    queues = [table for table in metadata.sorted_tables if is_queue(table)]
    if not queues:
        raise InvalidArgument(f"{shown(target)}: has no models with MessageQueueMixin")
    return queues


def load_models(target: str) -> list[type[MessageQueueMixin]]:
    """Return the models of the queues of a target; see :func:`load_queues`.

    :raises InvalidArgument: as :func:`load_queues` does, and for tables that have no model.
    """
    queues = load_queues(target)
    by_table = {model.__table__: model for model in _mapped(MessageQueueMixin)}
    if without := [table.name for table in queues if table not in by_table]:
        raise InvalidArgument(
            f"{shown(target)}: no imported model is mapped to {', '.join(without)}; name a module "
            "that imports the models"
        )
    return [by_table[table] for table in queues]


def load_model(target: str) -> type[MessageQueueMixin]:
    """Return the model of a target that is one, or has one only.

    :raises InvalidArgument: as :func:`load_models` does, and when there are several.
    """
    models = load_models(target)
    if len(models) > 1:
        names = ", ".join(f"{model.__module__}:{model.__qualname__}" for model in models)
        raise InvalidArgument(f"{shown(target)}: has {len(models)} queues; name one: {names}")
    return models[0]


def _is_model(found: object) -> bool:
    return (
        isinstance(found, type)
        and issubclass(found, MessageQueueMixin)
        and inspect(found, raiseerr=False) is not None
    )


def _mapped(cls: type[MessageQueueMixin]) -> Iterator[type[MessageQueueMixin]]:
    """Yield the mapped subclasses of a class."""
    for subclass in cls.__subclasses__():
        if _is_model(subclass):
            yield subclass
        yield from _mapped(subclass)
