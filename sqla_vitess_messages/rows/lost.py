"""Which database an error comes from: whether that one is away, or a connection to it was lost.

A server closes connections: those that were idle for long, and all when it restarts. A pool learns
this when it is too late. The transaction was rolled back, unless its COMMIT was sent.

An error doesn't tell which engine it comes from. So the engine's errors are noted as they occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from traceback import walk_tb
from typing import NamedTuple
from weakref import WeakSet

from sqlalchemy import Dialect, Engine, event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.base import OptionEngine

__all__ = ["is_away", "is_lost", "is_of", "watch"]

_NOTED = "_sqla_vitess_messages_noted"
"""The attribute of an error with what is noted. Built-in exceptions have no weak references."""

_watched: WeakSet[Dialect] = WeakSet()


def watch(engine: Engine) -> None:
    """Note the errors of an engine, and of others with the same dialect, from now on."""
    if engine.dialect not in _watched:
        _watched.add(engine.dialect)
        event.listen(engine.dialect, "handle_error", _note)


def is_of(error: BaseException, engine: Engine) -> bool:
    """Return whether an error is one of an engine that is watched, or of its pool."""
    if isinstance(error, exc.TimeoutError):
        return _is_of_pool(error, engine)
    noted: _Noted | None = vars(error).get(_NOTED)
    return noted is not None and noted.engine is _root(engine)


def _is_of_pool(error: exc.TimeoutError, engine: Engine) -> bool:
    """Return whether a method of an engine's pool has raised an error.

    The error itself doesn't name the pool, and SQLAlchemy has no event for it.
    """
    owners = [frame.f_locals.get("self") for frame, _line in walk_tb(error.__traceback__)]
    return owners[-1:] == [engine.pool]


def is_lost(error: BaseException, engine: Engine) -> bool:
    """Return whether an error comes from a lost connection of an engine that is watched.

    So does that of an engine that can't connect. What the error was raised from counts as well.
    """
    return any(noted.is_lost for noted in _notes(error, engine))


def is_away(error: BaseException, engine: Engine) -> bool:
    """Return whether an error comes from an engine that is watched, and that can't connect."""
    return any(noted.is_away for noted in _notes(error, engine))


class _Noted(NamedTuple):
    """What is known of an error as it occurs.

    :param is_lost: whether the connection is lost, or could not be made.
    :param is_away: whether it could not be made.
    """

    engine: Engine
    is_lost: bool
    is_away: bool


def _notes(error: BaseException, engine: Engine) -> list[_Noted]:
    """Return what was noted of an error of one engine, and of what it was raised from."""
    noted = (vars(one).get(_NOTED) for one in _with_causes(error))
    return [one for one in noted if one is not None and one.engine is _root(engine)]


def _note(context: ExceptionContext) -> None:
    # A statement that is cancelled, as by a timeout, leaves its connection unusable: it is closed.
    # That is the doing of whoever cancels it, and not of the database.
    if context.engine is None or not isinstance(context.original_exception, Exception):
        return
    is_away = context.connection is None
    noted = _Noted(_root(context.engine), is_away or context.is_disconnect, is_away)
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            vars(error)[_NOTED] = noted


def _root(engine: Engine) -> Engine:
    """Return the engine that this one was made of by ``execution_options``."""
    while isinstance(engine, OptionEngine):
        engine = engine._proxied
    return engine


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
