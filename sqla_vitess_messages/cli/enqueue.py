"""The command ``enqueue``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..errors import InvalidArgument
from ..mixin import MessageQueueMixin
from ..rows.message import queue_table
from ..shown import shown
from .arguments import AsJson, Target, Url, parse_duration
from .database import connect, in_transaction
from .messages import is_payload
from .selection import mapped_columns
from .showing import print_json
from .targets import load_model
from .values import from_json, parse_json

__all__ = ["IfExists", "enqueue", "parse_payload"]


class IfExists(StrEnum):
    """The values of ``--if-exists``, as of :meth:`.EnqueueableQueue.enqueue`."""

    RAISE = "raise"
    SKIP = "skip"
    REPLACE = "replace"


Delay = Annotated[
    str | None,
    typer.Option(
        "--in",
        metavar="SECONDS",
        help="Deliver it later; also as 15m, 2h, 7d or 4w.",
        show_default=False,
    ),
]
Priority = Annotated[
    int | None,
    typer.Option(min=-128, max=127, help="Lower goes first. Default: 50.", show_default=False),
]
Existing = Annotated[
    IfExists | None,
    typer.Option(
        "--if-exists",
        help="What to do if a queue with unique_by has an unsettled message of the same key. "
        "Default: refuse it.",
        show_default=False,
    ),
]


def enqueue(
    target: Target,
    payload: Annotated[
        str, typer.Argument(metavar="JSON", help='The payload, such as {"user_id": 7}.')
    ],
    url: Url,
    delay: Delay = None,
    priority: Priority = None,
    if_exists: Existing = None,
    as_json: AsJson = False,
) -> int:
    """Enqueue a message, and print its id.

    In JSON, dates and times are text in ISO 8601, a Decimal and a UUID are text, an Enum is the
    name of a member, and bytes are text in base64.
    """
    model = load_model(target)
    arguments: dict[str, Any] = parse_payload(model, payload)
    if delay is not None:
        arguments["deliver_in"] = parse_duration(delay, "--in")
    if priority is not None:
        arguments["priority"] = priority

    def insert(session: Session) -> tuple[str, int | None]:
        message = model(**arguments)
        _check_complete(message)
        return _insert(session, message, if_exists)

    with connect(url) as engine:
        outcome, message_id = in_transaction(engine, insert)
    text = None if message_id is None else str(message_id)
    if as_json:
        print_json({"queue": queue_table(model).name, "outcome": outcome, "id": text})
    else:
        typer.echo(text or outcome)
    return 0


def _insert(
    session: Session, message: MessageQueueMixin, if_exists: IfExists | None
) -> tuple[str, int | None]:
    """Enqueue a message, and return what became of it, and its id if it has a row of its own."""
    model = type(message)
    if if_exists is None and model.__queue__.unique_by is None:
        session.add(message)
        session.flush()
        return "enqueued", message.id
    if not model.enqueue(session, message, if_exists=(if_exists or IfExists.RAISE).value):
        return "skipped", None
    table = queue_table(model)
    if session.scalar(select(table.c.id).where(table.c.id == message.id)) is None:
        return "replaced", None  # The row of the other one, and its id, stay.
    return "enqueued", message.id


def parse_payload(model: type[MessageQueueMixin], text: str) -> dict[str, Any]:
    """Return the values of a new message's payload by their attributes.

    :raises InvalidArgument: for broken JSON, an unknown column, or a value that doesn't suit its
        column.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise InvalidArgument(f"{shown(text)}: is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgument(f'{shown(text)}: expected an object, such as {{"user_id": 7}}')
    columns = mapped_columns(model)
    payload = {name: column for name, column in columns.items() if is_payload(column)}
    if unknown := [name for name in values if name not in payload]:
        own = [name for name in unknown if name in columns]
        why = f"{', '.join(own)} is the queue's own; " if own else ""
        raise InvalidArgument(
            f"{model.__name__} has no payload {', '.join(map(shown, unknown))}: {why}there is "
            f"{', '.join(payload) or 'none'}"
        )
    return {name: from_json(payload[name], name, value) for name, value in values.items()}


def _check_complete(message: MessageQueueMixin) -> None:
    """Check that a new message, whose constructor may have set more, has all that it needs.

    :raises InvalidArgument: with the columns that are missing.
    """
    missing = [
        name
        for name, column in mapped_columns(type(message)).items()
        if is_payload(column)
        and getattr(message, name) is None
        and not (column.nullable or column.default is not None or column.server_default is not None)
    ]
    if missing:
        raise InvalidArgument(f"{type(message).__name__} needs {', '.join(missing)} too")
