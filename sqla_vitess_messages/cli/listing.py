"""The commands ``list`` and ``show``."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.table import Table as Grid
from rich.text import Text
from sqlalchemy.orm import Session

from ..rows.enqueue import MAX_ID
from ..rows.message import queue_table
from .arguments import AsJson, State, Target, Url, Where
from .database import connect, in_transaction
from .exits import print_error
from .messages import ShownMessage, find_messages
from .selection import Selected, known_states, select_models
from .showing import ago, grid, local_time, print_json, print_table, printable
from .targets import load_models
from .values import to_json

__all__ = ["list_messages", "show"]

MAX_LENGTH = 60
"""Characters of a payload value in a list."""


def list_messages(
    target: Target,
    url: Url,
    state: State = None,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of each queue.")] = 50,
    as_json: AsJson = False,
) -> int:
    """List messages, those that are due first at the beginning.

    Acked messages are left out, unless --state is acked.
    """
    models = load_models(target)
    unsettled = [s for model in models for s in known_states(model) if s != "acked"]
    selected = select_models(models, [state] if state else unsettled, where)
    messages = _find(url, selected, limit)
    if as_json:
        print_json([message.to_json() for message in messages])
    elif not messages:
        typer.echo("no messages")
    else:
        for queue, some in groupby(messages, lambda message: message.queue):
            print_table(_list_of(queue, list(some)))
    return 0


def show(
    target: Target,
    message_id: Annotated[int, typer.Argument(metavar="ID", help="Id of the message.")],
    url: Url,
    as_json: AsJson = False,
) -> int:
    """Show a message: its payload, its times, its attempts, and why it failed.

    Exits with 1 if there is none of this id.
    """
    selected = [
        (model, queue_table(model).c.id == message_id)
        for model in load_models(target)
        if 0 < message_id <= MAX_ID  # Not every database compares with larger numbers.
    ]
    messages = _find(url, selected, 1)
    if not messages:
        print_error(f"there is no message {message_id}")
        return 1
    message = messages[0]
    if as_json:
        print_json(message.to_json())
    else:
        print_table(_details(message))
    return 0


def _find(url: str, selected: Selected, limit: int) -> list[ShownMessage]:
    """Return messages, at most some of each queue."""

    def find(session: Session) -> list[ShownMessage]:
        return [
            message
            for model, condition in selected
            for message in find_messages(session, model, condition, limit)
        ]

    with connect(url) as engine:
        return in_transaction(engine, find)


def _list_of(queue: str, messages: list[ShownMessage]) -> Grid:
    payload = list(dict.fromkeys(name for message in messages for name in message.payload))
    has_reasons = any(message.fail_reason for message in messages)
    reason = ["fail_reason"] if has_reasons else []
    numbers = ("id", "attempts")
    table = grid("id", "state", "attempts", "deliver_at", *reason, *payload, right=numbers)
    table.title = queue
    for message in messages:
        if message.error is not None:
            table.add_row(str(message.id), _error(message.error))
            continue
        due = message.times.get("deliver_at")
        cells = [message.fail_reason or ""] if has_reasons else []
        cells += [_value(message.payload.get(name, "")) for name in payload]
        table.add_row(
            str(message.id),
            message.state,
            str(message.attempts),
            "" if due is None else ago(due),
            *(Text(printable(_shortened(cell))) for cell in cells),
        )
    return table


def _details(message: ShownMessage) -> Grid:
    table = grid("", "")
    table.show_header = False
    table.add_row("queue", Text(message.queue))
    table.add_row("id", str(message.id))
    if message.error is not None:
        table.add_row("error", _error(message.error))
        return table
    table.add_row("state", message.state)
    table.add_row("attempts", str(message.attempts))
    if message.priority is not None:
        table.add_row("priority", str(message.priority))
    for name, time in message.times.items():
        table.add_row(name, local_time(time))
    if message.fail_reason is not None:
        table.add_row("fail_reason", Text(printable(message.fail_reason)))
    for name, value in message.payload.items():
        table.add_row(f"payload {name}", Text(printable(_value(value))))
    return table


def _error(error: str) -> Text:
    return Text(printable(f"can't be loaded: {error}"))


def _value(value: Any) -> str:
    found = to_json(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}…"
