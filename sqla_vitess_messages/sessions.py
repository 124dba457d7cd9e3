"""What the session of a user's data is, and whether a message can commit with that data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Union

from sqlalchemy import Connection, Engine, update
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.util import ScopedRegistry

from .errors import InvalidArgument, InvalidArgumentType
from .rows.enqueue_unique import IfExists, enqueue_mixed
from .rows.message import Message, queue_table
from .rows.settle import connection_of, engine_of, refuse_autocommit
from .rows.states import is_replaceable
from .shown import shown

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

__all__ = [
    "AnySession",
    "add_messages",
    "begin_session",
    "check_made",
    "connection_for",
    "engine_for",
    "engines_of",
    "sync_session",
]

AnySession = Union[Session, "scoped_session[Any]", "AsyncSession", "async_scoped_session[Any]"]
"""A session of threads or of asyncio."""


def sync_session(session: AnySession) -> Session:
    """Return the Session that a scoped session or an AsyncSession stands for.

    :raises InvalidArgumentType: for anything else.
    """
    found: Any = session
    if not isinstance(found, Session) and isinstance(
        registry := getattr(found, "registry", None), ScopedRegistry
    ):
        found = registry()  # A scoped session's own. To call another factory would make a new one.
    found = getattr(found, "sync_session", found)
    if not isinstance(found, Session):
        raise InvalidArgumentType(
            f"session={shown(session)}: expected a Session, an AsyncSession or a scoped session; "
            "of a sessionmaker, one of its sessions"
        )
    return found


@contextmanager
def begin_session(session_factory: Callable[[], Session]) -> Iterator[Session]:
    """Begin a transaction. It commits with the block.

    :raises InvalidArgumentType: when the factory makes anything but a session.
    """
    made = session_factory()
    if not isinstance(made, AbstractContextManager):
        check_made(session_factory, made, Session)
    with made as session:
        check_made(session_factory, session, Session)
        with session.begin():
            yield session


def check_made(session_factory: Callable[[], Any], made: Any, kind: type[Any]) -> None:
    """Check what a session factory has made.

    :param kind: Session or AsyncSession.
    :raises InvalidArgumentType: for anything but such a session, without a transaction.
    """
    if not isinstance(made, kind) or made.in_transaction():
        raise InvalidArgumentType(
            f"session_factory={shown(session_factory)}: it made {shown(made)}; expected "
            f"{kind.__name__} objects whose transaction has not begun, as a sessionmaker makes them"
        )


def add_messages(session: Session, messages: Iterable[Message], if_exists: IfExists) -> None:
    """Enqueue messages of several queues.

    :param if_exists: concerns those of queues with ``unique_by``; the session adds the others.
    """
    added: list[Message] = []
    unique: list[Message] = []
    for message in messages:
        is_unique = if_exists != "raise" and is_replaceable(queue_table(type(message)))
        (unique if is_unique else added).append(message)
    session.add_all(added)
    enqueue_mixed(session, unique, if_exists)


def engines_of(session: Session) -> set[Engine]:
    """Return the engines on which a session writes its data."""
    if session.bind is not None and not _chooses_engines(session):
        return {session.bind.engine}
    transaction = session.get_transaction()
    # Not public. Listening for after_begin instead would have to begin before the transaction
    # does, and so on every session of the process.
    connections = {} if transaction is None else transaction._connections
    return {connection.engine for connection, *_ in connections.values()}


def engine_for(session: Session, model: type[Message], expected: Collection[Engine]) -> Engine:
    """Return the engine on which a queue's messages are inserted.

    :param expected: the engines of the data that they commit with, as far as they are known.
    :raises InvalidArgument: when they can't commit with the data.
    """
    try:
        engine = engine_of(model, session)
    except UnboundExecutionError as error:
        raise InvalidArgument(
            f"{model.__name__}: the session has no engine for this queue"
        ) from error
    if expected and engine not in expected and not _only_reads(session, expected):
        raise InvalidArgument(
            f"{model.__name__}: its queue is on {shown(engine)}, the session's data on "
            f"{shown(set(expected))}; the message can't commit with the data. Put the queue into "
            "the same database"
        )
    return engine


def _chooses_engines(session: Session) -> bool:
    """Return whether a session's class has its own way to find an engine."""
    return type(session).get_bind is not Session.get_bind


def _only_reads(session: Session, engines: Collection[Engine]) -> bool:
    """Return whether a session only reads from engines, such as those of replicas.

    One that chooses engines itself is asked where it would write each mapped class.
    """
    if not _chooses_engines(session):
        return False
    for registry in _all_registries():
        for mapper in registry.mappers:
            with suppress(Exception):  # It has no engine for the class, and so can't write it.
                bind = session.get_bind(mapper=mapper, clause=update(mapper.class_))
                if bind.engine in engines:
                    return False
    return True


def connection_for(
    session: Session, model: type[Message], expected: Collection[Engine]
) -> Connection:
    """Return the connection on which a queue's messages are inserted; see :func:`engine_for`.

    :raises InvalidArgument: when they can't commit with the data, also because each statement of
        the connection commits by itself.
    """
    engine_for(session, model, expected)
    connection = connection_of(model, session)
    refuse_autocommit(connection, model.__name__)
    return connection
