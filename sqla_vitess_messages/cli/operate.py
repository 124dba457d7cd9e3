"""The commands that change messages and queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from ..errors import InvalidArgument
from ..mixin import MessageQueueMixin
from ..rows.message import queue_table
from ..shown import shown
from .arguments import AsJson, Everything, Ids, State, Target, Url, Where, Yes, parse_duration
from .database import connect, in_transaction
from .exits import print_error
from .selection import Selected, select_models
from .showing import print_json
from .targets import load_models

__all__ = ["cancel", "pause", "purge_dead", "requeue", "reschedule", "resume", "run_now"]

Model = type[MessageQueueMixin]

WAITING = ("ready", "scheduled", "retrying")
"""The states of messages that nobody has, and that can be delivered at another time."""


@dataclass(frozen=True)
class Operation:
    """What a command does with messages."""

    verb: str
    """What it asks to do."""
    done: str
    """What it says that it has done."""
    states: tuple[str, ...]
    """The states of the messages that it changes."""
    apply: Callable[[Model, Session, Any], int]
    """Changes those of some messages, given by their ids or by a condition."""


@dataclass(frozen=True)
class Chosen:
    """The arguments by which a user chooses messages."""

    target: str
    url: str
    ids: list[int] | None
    everything: bool
    state: str | None
    where: list[str] | None
    yes: bool
    as_json: bool


def _command(operation: Operation, text: str) -> Callable[..., int]:
    """Return the function of a command that needs no argument of its own.

    :param text: its help.
    """

    def run(
        target: Target,
        url: Url,
        ids: Ids = None,
        everything: Everything = False,
        state: State = None,
        where: Where = None,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> int:
        chosen = Chosen(target, url, ids, everything, state, where, yes, as_json)
        return _operate(operation, chosen)

    run.__doc__ = text
    return run


requeue = _command(
    Operation("Requeue", "requeued", ("dead",), lambda model, *about: model.requeue(*about)),
    "Make dead messages ready to be delivered again, as if for the first time.",
)

run_now = _command(
    Operation(
        "Run at once",
        "to be delivered at once",
        WAITING,
        lambda model, *about: model.run_now(*about),
    ),
    """Have scheduled messages delivered at once, and those that wait for a retry.

    Retries can be told from messages in work only if the model has MessageFailuresMixin.
    """,
)

cancel = _command(
    Operation(
        "Cancel",
        "cancelled",
        (*WAITING, "leased", "dead"),
        lambda model, *about: model.cancel(*about),
    ),
    """Delete messages that aren't acked, whatever else their state is.

    The effect of a handler that is handling one is rolled back.
    """,
)


def reschedule(
    target: Target,
    url: Url,
    delay: Annotated[
        str, typer.Option("--in", metavar="SECONDS", help="From now; also as 15m, 2h, 7d or 4w.")
    ],
    ids: Ids = None,
    everything: Everything = False,
    state: State = None,
    where: Where = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Have messages that wait delivered later, or earlier."""
    seconds = parse_duration(delay, "--in")
    operation = Operation(
        "Reschedule",
        "rescheduled",
        WAITING,
        lambda model, *about: model.reschedule(*about, deliver_in=seconds),
    )
    chosen = Chosen(target, url, ids, everything, state, where, yes, as_json)
    return _operate(operation, chosen)


def purge_dead(
    target: Target,
    url: Url,
    older_than: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Age, such as 7d; 0 for all."),
    ],
    as_json: AsJson = False,
) -> int:
    """Delete dead messages that are old enough; 0 deletes all.

    Queues in the minimal layout don't keep when messages were enqueued, and are left out if
    --older-than isn't 0.
    """
    age = parse_duration(older_than, "--older-than") or None
    models = load_models(target)
    chosen = [model for model in models if age is None or "time_created" in queue_table(model).c]
    left_out = ", ".join(queue_table(model).name for model in models if model not in chosen)
    why = f"{left_out}: the minimal layout doesn't keep when messages were enqueued"
    if not chosen:
        raise InvalidArgument(f"--older-than {shown(older_than)}: {why}; 0 deletes all dead ones")

    def purge(session: Session) -> int:
        return sum(model.purge_dead(session, age) for model in chosen)

    with connect(url) as engine:
        count = in_transaction(engine, purge)
    _print_result("deleted", count, [], as_json)
    if left_out:
        typer.echo(f"Left out {why}", err=True)
    return 0


def pause(target: Target, url: Url, as_json: AsJson = False) -> int:
    """Pause queues: within a second, nobody gets messages in any process."""
    return _set_paused(target, url, as_json, "paused", lambda model, session: model.pause(session))


def resume(target: Target, url: Url, as_json: AsJson = False) -> int:
    """End the pause of queues: within a second, messages are delivered again."""
    return _set_paused(
        target, url, as_json, "resumed", lambda model, session: model.resume(session)
    )


def _set_paused(
    target: str, url: str, as_json: bool, done: str, change: Callable[[Model, Session], None]
) -> int:
    models = load_models(target)

    def change_all(session: Session) -> None:
        for model in models:
            change(model, session)

    with connect(url) as engine:
        in_transaction(engine, change_all)
    names = [queue_table(model).name for model in models]
    if as_json:
        print_json({done: names})
    else:
        typer.echo(f"{done}: {', '.join(names)}")
    return 0


def _operate(operation: Operation, chosen: Chosen) -> int:
    """Execute an operation on the messages that the user chooses, and report it."""
    if bool(chosen.ids) == chosen.everything:
        raise InvalidArgument("give ids of messages, or --all, and not both")
    models = load_models(chosen.target)
    if chosen.ids:
        if chosen.state is not None or chosen.where:
            raise InvalidArgument("--state and --where go with --all, not with ids")
        with connect(chosen.url) as engine:
            count, unmatched = _change_by_ids(engine, operation, models, chosen.ids)
        _print_result(operation.done, count, unmatched, chosen.as_json)
        return 1 if unmatched else 0
    if chosen.state is not None and chosen.state not in operation.states:
        allowed = ", ".join(operation.states)
        raise InvalidArgument(f"--state {shown(chosen.state)}: expected one of {allowed}")
    states = [chosen.state] if chosen.state else operation.states
    selected = select_models(models, states, chosen.where)
    with connect(chosen.url) as engine:
        if not chosen.yes:
            _confirm(operation, in_transaction(engine, lambda session: _count(session, selected)))
        count = in_transaction(engine, lambda session: _change(session, operation, selected))
    _print_result(operation.done, count, [], chosen.as_json)
    return 0


def _change_by_ids(
    engine: Engine, operation: Operation, models: Sequence[Model], ids: Sequence[int]
) -> tuple[int, list[int]]:
    """Return how many messages were changed, and the ids that match none which could be."""

    def change(session: Session) -> list[int]:
        # One by one, because only so it is known which of them match.
        return [
            message_id
            for message_id in dict.fromkeys(ids)
            if not sum(operation.apply(model, session, [message_id]) for model in models)
        ]

    unmatched = in_transaction(engine, change)
    return len(set(ids)) - len(unmatched), unmatched


def _change(session: Session, operation: Operation, selected: Selected) -> int:
    return sum(operation.apply(model, session, condition) for model, condition in selected)


def _count(session: Session, selected: Selected) -> int:
    return sum(
        session.scalar(select(func.count()).select_from(queue_table(model)).where(condition)) or 0
        for model, condition in selected
    )


def _confirm(operation: Operation, count: int) -> None:
    """Ask the user.

    :raises typer.Abort: if the answer is no.
    """
    if count:
        typer.confirm(f"{operation.verb} {_messages(count)}?", abort=True, err=True)


def _print_result(done: str, count: int, unmatched: Sequence[int], as_json: bool) -> None:
    if as_json:
        print_json({"done": done, "count": count, "unmatched": [str(one) for one in unmatched]})
    else:
        typer.echo(f"{_messages(count)} {done}")
    if unmatched:
        print_error(
            f"not {done}, as no message that could be has this id: "
            f"{', '.join(str(one) for one in unmatched)}"
        )


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
