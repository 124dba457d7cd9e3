"""What the pages of a queue show of its messages, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup
from sqlalchemy import Select, inspect
from starlette.exceptions import HTTPException

from ...mixin import MessageQueueMixin
from ...rows import failures, states
from ...rows.failures import FAILURES_KEY
from ...rows.message import queue_table
from ...rows.reasons import REASON_COLUMN
from ...table.options import OPTIONS_KEY
from ...texts import encodable

__all__ = ["StateFilter", "payload_names", "settings"]

Model = type[MessageQueueMixin]

MAX_LENGTH = 200
"""Characters of a value in a list, which shows as many as there is room for."""

COLORS = {
    "ready": "blue",
    "scheduled": "cyan",
    "leased": "yellow",
    "retrying": "orange",
    "dead": "red",
    "acked": "green",
}

LABELS = {
    "id": "Id",
    "state": "State",
    "attempts": "Attempts",
    "priority": "Priority",
    "deliver_at": "Due",
    "created_at": "Enqueued",
    "acked_at": "Acked",
    "failed_at": "Failed",
    "fail_reason": "Reason",
    "epoch": "Epoch",
}


def settings(model: Model) -> dict[str, Any]:
    """Return the settings of a ModelView for a queue, by their names."""
    table = queue_table(model)
    payload = payload_names(model)
    reason = [_attribute(model, REASON_COLUMN)] if REASON_COLUMN in table.c else []
    created = ["created_at"] if "time_created" in table.c else []
    failed = ["failed_at"] if failures.are_kept(table) else []
    priority = ["priority"] if "priority" in table.c else []
    times = ["deliver_at", *created, "acked_at", *failed]
    formatters: dict[str, Callable[..., Any]] = dict.fromkeys(times, _ago)
    formatters |= {"state": _badge, "deliver_at": _due}
    in_list, in_detail = dict.fromkeys([*payload, *reason], _short), dict.fromkeys(payload, _whole)
    return {
        "column_list": ["id", "state", *payload, *reason, "attempts", "deliver_at", *created],
        "column_details_list": [
            *("id", "state", *payload, "attempts", *reason, *times, *priority, "epoch")
        ],
        "column_searchable_list": [*payload, *reason],
        "column_sortable_list": ["id", "deliver_at", *created, *priority],
        # The newest first, by the primary key.
        "column_default_sort": ("time_scheduled" if "time_scheduled" in table.c else "id", True),
        "column_filters": [StateFilter(model)],
        "column_labels": LABELS,
        "column_formatters": formatters | in_list,
        "column_formatters_detail": formatters | in_detail | dict.fromkeys(reason, _text),
        "form_columns": [*payload, *priority],
    }


def _attribute(model: Model, column: str) -> str:
    key: str = inspect(model).get_property_by_column(queue_table(model).c[column]).key
    return key


def payload_names(model: Model) -> list[str]:
    """Return the names of the attributes that the user defined."""
    own = (OPTIONS_KEY, FAILURES_KEY)
    return [
        attribute.key
        for attribute in inspect(model).column_attrs
        if not any(key in attribute.columns[0].info for key in own)
        and attribute.columns[0].name != REASON_COLUMN
    ]


class StateFilter:
    """Filters a list by the state of its messages; one of sqladmin's filters."""

    has_operator = False
    template = "sqladmin/filters/lookup_filter.html"
    title = "State"
    parameter_name = "state"

    def __init__(self, model: Model) -> None:
        table = queue_table(model)
        self._states = list(states.conditions(table, table))

    async def lookups(self, *_: Any) -> list[tuple[str, str]]:
        """Return the values to choose from, each with its label."""
        return [(state, state) for state in self._states]

    async def get_filtered_query(self, query: Select[Any], value: Any, model: Any) -> Select[Any]:
        """Return the query of messages in a state."""
        if value not in self._states:
            raise HTTPException(400, f"state: expected one of {', '.join(self._states)}")
        return query.where(model.state == value)


def _badge(message: Any, name: str) -> Markup:
    state = getattr(message, name)
    color = COLORS[state]
    return Markup('<span class="badge bg-{0}-lt text-{0}">{1}</span>').format(color, state)


def _due(message: Any, name: str) -> Markup:
    if message.state in ("dead", "acked"):
        return Markup()
    return _ago(message, name)


def _ago(message: Any, name: str) -> Markup:
    """Return how long ago a time is, with the time itself; the page's script makes it local."""
    time: datetime | None = getattr(message, name)
    if time is None:
        return Markup()
    text = time.isoformat(" ", "seconds").replace("+00:00", " UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        time.isoformat(), text, _distance(time - datetime.now(UTC))
    )


def _distance(delta: timedelta) -> str:
    seconds = abs(int(delta.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length or unit == "s":
            number = f"{seconds // length} {unit}"
            return f"in {number}" if delta > timedelta() else f"{number} ago"
    raise AssertionError


def _short(message: Any, name: str) -> Markup:
    """Return the beginning of a value."""
    text = _as_text(getattr(message, name))
    text = text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"
    return Markup('<span class="queue-short" title="{0}">{0}</span>').format(text)


def _whole(message: Any, name: str) -> Markup:
    value = getattr(message, name)
    return _pre(_as_text(value, indent=2 if isinstance(value, (dict, list)) else None))


def _text(message: Any, name: str) -> Markup:
    return _pre(_as_text(getattr(message, name)))


def _pre(text: str) -> Markup:
    return Markup('<pre class="queue-value">{}</pre>').format(text) if text else Markup()


def _as_text(value: Any, indent: int | None = None) -> str:
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        value = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return encodable(str(value))
