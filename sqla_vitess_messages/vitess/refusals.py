"""The errors by which Vitess refuses a statement because its shard has no primary just now.

A reparent takes less than a second, and the restart of a tablet some seconds.
"""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError

__all__ = ["is_refusal"]

_UNKNOWN_ERROR = (1105,)
"""The number of all these errors, and of many others."""

_REFUSAL = re.compile(
    # The tablet has ceased to be the primary, or is about to.
    r"operation not allowed in state (NOT_SERVING|SHUTTING_DOWN)"
    r"|(wrong|invalid) tablet type"
    # vtgate knows of none, or can't reach the one that it knows.
    r"|no healthy tablet available"
    r"|code = Unavailable desc = connection error"
    # vtgate has held the statement back for as long as it may.
    r"|primary is not serving"
    r"|keyspace is being resharded"
)
"""The texts are those of ``go/vt/vterrors/constants.go`` and ``go/vt/vtgate/tabletgateway.go``."""


def is_refusal(error: DBAPIError) -> bool:
    """Return whether Vitess has refused a statement because its shard has no primary just now."""
    number_and_text = () if error.orig is None else error.orig.args[:2]
    return number_and_text[:1] == _UNKNOWN_ERROR and bool(_REFUSAL.search(str(number_and_text)))
