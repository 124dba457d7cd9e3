"""Classes made by pydantic, as SQLModel's are: pydantic knows their fields and refuses the rest.

As with a dataclass, the queue's own columns are no fields: they stay out of what is generated for
a class, such as its schema, ``model_dump`` and ``repr``.
"""

from __future__ import annotations

from collections.abc import Collection
from inspect import getattr_static
from typing import Any

from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm.attributes import set_attribute
from sqlalchemy.orm.instrumentation import is_instrumented

from ..errors import InvalidQueue

__all__ = ["allow_columns", "check_version", "fields", "is_pydantic"]


def is_pydantic(cls: type[Any]) -> bool:
    """Return whether a class is a pydantic model or dataclass, without importing pydantic."""
    return hasattr(cls, "__pydantic_validator__")


def check_version(cls: type[Any]) -> None:
    """Refuse a model of pydantic 1, whose constructor would drop ``deliver_in`` and ``priority``.

    :raises InvalidQueue: for such a class.
    """
    if not is_pydantic(cls) and isinstance(getattr(cls, "__fields__", None), dict):
        raise InvalidQueue(f"{cls.__name__}: a queue with SQLModel needs pydantic 2")


def fields(cls: type[Any]) -> Collection[str]:
    """Return the names of the fields of a pydantic model or dataclass."""
    of_model: Collection[str] | None = getattr(cls, "model_fields", None)
    return cls.__pydantic_fields__ if of_model is None else of_model


def allow_columns(cls: type[Any]) -> None:
    """Make instances accept attributes that are mapped or hybrid, and no fields of pydantic's."""
    known = fields(cls)
    original: Any = cls.__setattr__

    def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
        if name not in known and is_instrumented(self, name):  # type: ignore[no-untyped-call]
            set_attribute(self, name, value)
        elif isinstance(getattr_static(type(self), name, None), hybrid_property):
            object.__setattr__(self, name, value)
        else:
            original(self, name, value)

    cls.__setattr__ = __setattr__  # type: ignore[assignment]
