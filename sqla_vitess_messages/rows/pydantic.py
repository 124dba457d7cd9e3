"""Classes made by pydantic, as SQLModel's are: pydantic knows their fields and refuses the rest.

As with a dataclass, the queue's own columns are no fields: they stay out of what is generated for
a class, such as its schema, ``model_dump`` and ``repr``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm.attributes import set_attribute
from sqlalchemy.orm.instrumentation import is_instrumented

from ..errors import InvalidQueue

__all__ = ["allow_columns", "check_version", "is_pydantic"]


def is_pydantic(cls: type[Any]) -> bool:
    """Return whether a class is a pydantic model or dataclass, without importing pydantic."""
    return hasattr(cls, "__pydantic_validator__")


def check_version(cls: type[Any]) -> None:
    """Refuse a model of pydantic 1, whose constructor would drop ``deliver_in`` and ``priority``.

    :raises InvalidQueue: for such a class.
    """
    if not is_pydantic(cls) and isinstance(getattr(cls, "__fields__", None), dict):
        raise InvalidQueue(f"{cls.__name__}: a queue with SQLModel needs pydantic 2")


def allow_columns(cls: type[Any]) -> None:
    """Make instances accept mapped attributes that are no fields. A pydantic model refuses them."""
    fields = getattr(cls, "model_fields", None)
    if fields is None:
        return  # A dataclass accepts any attribute.
    original: Any = cls.__setattr__

    def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
        if name not in fields and is_instrumented(self, name):  # type: ignore[no-untyped-call]
            set_attribute(self, name, value)
        else:
            original(self, name, value)

    cls.__setattr__ = __setattr__  # type: ignore[assignment]
