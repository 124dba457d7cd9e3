"""Text that can be written anywhere, and values as JSON has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["encodable", "in_json"]


def encodable(text: str) -> str:
    r"""Return a text with the code in place of each character that can't be encoded.

    These are halves of surrogate pairs, which JSON may contain. In a text of JSON, such a code is
    what JSON itself writes: ``\ud800``.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_json(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """Return a value as JSON has it: what JSON lacks is text, such as ``NaN`` and ``{1, 2}``.

    :param default: returns another value for one that JSON lacks, such as a Decimal in a list.
    """
    try:
        return json.loads(json.dumps(value, default=default), parse_constant=str)
    except (TypeError, ValueError):
        return str(value)
