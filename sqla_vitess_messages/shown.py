"""Show values in error texts: without passwords, and whatever their ``repr`` does."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType
from uuid import UUID

from sqlalchemy import URL, Engine

__all__ = ["shown"]

MAX_LENGTH = 200
"""Characters of a value that an error shows."""

MAX_ITEMS = 10
"""Elements of a list that an error shows."""

_PASSWORDS = (
    # A password in place of the port.
    re.compile(r"(?P<before>@[^\s:/?]*:)(?!\d+(?:[/?]|$))[^/?\s]*(?P<after>)"),
    # user:password@, with or without a scheme. A password may contain any character.
    re.compile(r"(?P<before>(?:[\w+.-]+://)?[^\s:/@]*:)(?!//).*(?P<after>@)", re.DOTALL),
    re.compile(r"(?P<before>(?:passw\w*|pwd|secret|token)\s*=)[^&;\s]*(?P<after>)", re.IGNORECASE),
)

_SIMPLE = (bool, int, float, complex, Decimal, date, datetime, time, timedelta, UUID, type(None))
"""Types whose values show no more than they are."""

_COLLECTIONS = (list, tuple, set, frozenset)
"""Types whose elements are shown."""

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


def shown(value: object) -> str:
    """Return a short text for a value, to show in an error.

    A value may have been passed in place of another one, such as a database's URL for a number. So
    passwords in texts are masked, and of an object whose text could hold anything only the type is
    shown.
    """
    if isinstance(value, Enum):
        text = f"{type(value).__qualname__}.{value.name}"
    elif isinstance(value, str):
        text = str.__repr__(_mask_passwords(value))
    elif isinstance(value, Engine):
        text = f"Engine({shown(value.url)})"
    elif isinstance(value, URL):
        text = _mask_passwords(value.render_as_string(hide_password=True))
    elif isinstance(value, (type, *_FUNCTIONS)):
        name = getattr(value, "__qualname__", type(value).__name__)
        text = f"{value.__module__}.{name}"
    elif type(value) in _SIMPLE:
        text = _repr(value)
    elif type(value) in _COLLECTIONS:
        text = _elements(value)  # type: ignore[arg-type]
    else:
        text = object.__repr__(value)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"


def _mask_passwords(text: str) -> str:
    for password in _PASSWORDS:
        text = password.sub(r"\g<before>***\g<after>", text)
    return text


def _repr(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # An int with more digits than Python prints.
        return object.__repr__(value)


def _elements(values: Collection[object]) -> str:
    texts = [
        object.__repr__(value) if type(value) in _COLLECTIONS else shown(value)
        for value in islice(values, MAX_ITEMS)
    ]
    if len(values) > MAX_ITEMS:
        texts.append("…")
    text = ", ".join(texts)
    if isinstance(values, list):
        return f"[{text}]"
    if isinstance(values, tuple):
        return f"({text},)" if len(values) == 1 else f"({text})"
    return f"{{{text}}}" if values else f"{type(values).__name__}()"
