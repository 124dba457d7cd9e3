"""Enqueue from what happens in a session: its commit, or the flush that writes a change.

.. code-block:: python

    on_commit(session, lambda: Invoice(total=cart.total))

    @emits(User, "insert", "update")
    def greet(user):
        return Welcome(user_id=user.id)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Union, get_args

from sqlalchemy import Connection, Delete, Engine, Insert, Update, event, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import (
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    object_mapper,
    object_session,
    scoped_session,
)

from .errors import InvalidArgument, InvalidArgumentType
from .leases import connection_of
from .mixin import MessageQueueMixin

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

__all__ = ["AnySession", "Change", "Emitted", "emits", "on_commit", "without_emits"]

F = TypeVar("F", bound=Callable[[Any], Any])

AnySession = Union[Session, "scoped_session[Any]", "AsyncSession", "async_scoped_session[Any]"]
Emitted = Union[MessageQueueMixin, Iterable[MessageQueueMixin], None]
"""What a hook returns: a message, several, or none."""

Change = Literal["insert", "update", "delete"]

_WAITING, _CHANGES, _ENGINES, _OFF = (
    f"sqla_vitess_messages.{name}" for name in ("waiting", "changes", "engines", "off")
)
"""Keys in ``Session.info``."""

_MOST_ROUNDS = 100
"""How often factories may add factories: as often as a commit flushes."""


def on_commit(session: AnySession, factory: Callable[[], Emitted]) -> None:
    """Call ``factory`` just before the transaction's last flush, and enqueue what it returns.

    It is forgotten when the transaction rolls back, or the savepoint it was given in. An exception
    of the factory keeps the transaction from committing.

    :param session: a Session, scoped_session or AsyncSession. A transaction begins if there is
        none.
    :param factory: takes no arguments and returns a message, several, or None. It may call
        ``on_commit`` again.
    :raises InvalidArgumentType: when an argument has another type.
    """
    if not callable(factory):
        raise InvalidArgumentType(f"factory={factory!r}: expected a callable without arguments")
    session = _sync_session(session)
    waiting: _Waiting | None = session.info.get(_WAITING)
    if waiting is None:
        waiting = session.info[_WAITING] = _Waiting(session)
    waiting.add(session, factory)


class _Waiting:
    """The factories of one session, each with the transaction or savepoint it belongs to."""

    def __init__(self, session: Session) -> None:
        self._factories: list[tuple[SessionTransaction, Callable[[], Emitted]]] = []
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_soft_rollback", self._after_soft_rollback)
        event.listen(session, "after_transaction_end", self._after_transaction_end)

    def add(self, session: Session, factory: Callable[[], Emitted]) -> None:
        transaction = session.get_nested_transaction() or session.get_transaction()
        self._factories.append((transaction or session.begin(), factory))

    def _before_commit(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # A savepoint's end: it may still be undone with what is around it.
        for _ in range(_MOST_ROUNDS):
            if not self._factories:
                return
            session.flush()  # So that factories see generated keys.
            factories, self._factories = self._factories, []
            for _transaction, factory in factories:
                for message in _messages(factory(), factory):
                    _refuse_other_engine(session, message, _engines(session))
                    session.add(message)
        raise InvalidArgument(
            f"on_commit: factories still gave others after {_MOST_ROUNDS} rounds of them"
        )

    def _after_soft_rollback(self, _session: Session, undone: SessionTransaction) -> None:
        self._factories = [item for item in self._factories if undone not in _lineage(item[0])]

    def _after_transaction_end(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self._factories.clear()


def _lineage(transaction: SessionTransaction | None) -> Iterator[SessionTransaction]:
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


class _Emitter(NamedTuple):
    """A function decorated by :func:`emits`."""

    model: type[Any]
    function: Callable[[Any], Emitted]
    when: Callable[[Any], object] | None


class _Changed(NamedTuple):
    """An object that the present flush has written, and what listens to that."""

    changed: object
    emitter: _Emitter


_listened: dict[tuple[type[Any], Change], list[_Emitter]] = defaultdict(list)


def emits(
    model: type[Any], *changes: Change, when: Callable[[Any], object] | None = None
) -> Callable[[F], F]:
    """Decorate a function that makes messages of an object that was inserted, updated or deleted.

    It is called at the end of the flush that wrote the change, once for each object; its messages
    are inserted in that flush. Keys are there, and ``sqlalchemy.inspect(obj).attrs.name.history``
    has the old and the new values; the old ones of expired attributes only if they are mapped with
    ``active_history=True``. An exception makes the flush fail.

    Only the unit of work knows objects. ORM-enabled and Core statements that insert, update or
    delete such rows are therefore refused in sessions; see :func:`without_emits`. Not seen at all
    is what passes the session by: statements on a Connection or as text, the legacy
    ``Session.bulk_…`` methods, and what the database does by itself, such as ON DELETE CASCADE.

    :param model: a mapped class, a base or a mixin. Subclasses count, those still to come as well;
        but messages only if ``model`` is a queue.
    :param changes: of ``"insert"``, ``"update"``, ``"delete"``, at least one.
    :param when: takes the object; the function is called if it returns something true.
    :raises InvalidArgument: when there is no such change.
    :raises InvalidArgumentType: when an argument has another type.
    """
    if not isinstance(model, type):
        raise InvalidArgumentType(f"model={model!r}: expected a class")
    if unknown := [change for change in changes if change not in get_args(Change)]:
        raise InvalidArgument(f"changes={unknown!r}: expected some of {get_args(Change)}")
    if not changes:
        raise InvalidArgument(f"changes=(): expected some of {get_args(Change)}")
    if when is not None and not callable(when):
        raise InvalidArgumentType(f"when={when!r}: expected a callable")

    def register(function: F) -> F:
        if not callable(function):
            raise InvalidArgumentType(f"emits decorates a function, not {function!r}")
        _listen_to_sessions()
        emitter = _Emitter(model, function, when)
        for change in dict.fromkeys(changes):
            _listened[model, change].append(emitter)
            note = partial(_note, emitter, change)
            event.listen(model, f"after_{change}", note, propagate=True)
        return function

    return register


@contextmanager
def without_emits(session: Session | scoped_session[Any]) -> Iterator[None]:
    """Write changes without calling what :func:`emits` decorates, for data migrations and the like.

    The session is flushed before and after, so that exactly the changes made in the block count.
    With an AsyncSession, put the block into a function for ``AsyncSession.run_sync``.
    """
    session = _sync_session(session)
    session.flush()
    session.info[_OFF] = session.info.get(_OFF, 0) + 1
    try:
        yield
        session.flush()
    finally:
        session.info[_OFF] -= 1


def _note(
    emitter: _Emitter, change: Change, _mapper: Mapper[Any], _connection: object, changed: object
) -> None:
    """Note what a flush writes; a mapper's event for each object."""
    session = object_session(changed)
    assert session is not None
    if session.info.get(_OFF) or not _concerns(emitter.model, type(changed)):
        return
    # The event also comes for objects that turned out to have nothing to update.
    if change == "update" and not session.is_modified(changed, include_collections=False):
        return
    session.info.setdefault(_CHANGES, []).append(_Changed(changed, emitter))


def _listen_to_sessions() -> None:
    for name, listener in (
        ("before_flush", _before_flush),
        ("after_flush", _after_flush),
        ("do_orm_execute", _refuse_statements),
    ):
        if not event.contains(Session, name, listener):
            event.listen(Session, name, listener)


def _before_flush(session: Session, *_flush: object) -> None:
    session.info.pop(_CHANGES, None)  # Of a flush that failed.


def _after_flush(session: Session, _flush: object) -> None:
    messages: dict[type[MessageQueueMixin], list[MessageQueueMixin]] = defaultdict(list)
    for changed, emitter in session.info.pop(_CHANGES, ()):
        if emitter.when is None or emitter.when(changed):
            for message in _messages(emitter.function(changed), emitter.function):
                engine = session.get_bind(object_mapper(changed)).engine
                _refuse_other_engine(session, message, {engine})
                messages[type(message)].append(message)
    for model, of_model in messages.items():
        # By a session of their own: in this one they would wait for the next flush, and a savepoint
        # that begins with this flush would take them with it when it rolls back.
        connection = connection_of(model, session)
        with Session(connection, join_transaction_mode="rollback_only") as inner:
            inner.add_all(of_model)
            inner.flush()


def _refuse_statements(state: ORMExecuteState) -> None:
    statement = state.statement
    if not isinstance(statement, (Insert, Update, Delete)) or state.session.info.get(_OFF):
        return
    kind: Change = "insert"
    if not state.is_insert:
        kind = "update" if state.is_update else "delete"
    for (model, change), emitters in _listened.items():
        if change == kind and statement.table in _tables(model):
            raise InvalidArgument(
                f"{kind} of {statement.table}: a statement has no objects for "
                f"{emitters[0].function.__qualname__}, which @emits of {model.__name__} calls for "
                "each; change objects in the session, or use without_emits(session)"
            )


def _concerns(model: type[Any], changed: type[Any]) -> bool:
    """Leave messages out, unless ``emits`` names their class: each would make the next."""
    return issubclass(model, MessageQueueMixin) or not issubclass(changed, MessageQueueMixin)


def _tables(model: type[Any]) -> set[Any]:
    """Return the tables of a class and of the classes below it, as far as they are mapped."""
    tables: set[Any] = set()
    for cls in (model, *_subclasses(model)):
        mapper = inspect(cls, raiseerr=False)
        if isinstance(mapper, Mapper) and _concerns(model, cls):
            tables |= {mapper.local_table, *mapper.tables}
    return tables


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _messages(returned: Emitted, hook: Callable[..., Any]) -> list[MessageQueueMixin]:
    if returned is None:
        return []
    if isinstance(returned, MessageQueueMixin):
        return [returned]
    messages = list(returned) if isinstance(returned, Iterable) else [returned]
    for message in messages:
        if not isinstance(message, MessageQueueMixin):
            raise InvalidArgumentType(
                f"{getattr(hook, '__qualname__', hook)} returned {message!r}: expected a message, "
                "several, or None"
            )
    return messages


@event.listens_for(Session, "after_begin")
def _note_engine(session: Session, _transaction: object, connection: Connection) -> None:
    session.info.setdefault(_ENGINES, set()).add(connection.engine)


@event.listens_for(Session, "after_transaction_end")
def _forget_engines(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_ENGINES, None)


def _engines(session: Session) -> set[Engine]:
    """Return the engines that a session's data goes to."""
    if session.bind is not None:
        return {session.bind.engine}
    engines: set[Engine] = session.info.get(_ENGINES, set())
    return engines


def _refuse_other_engine(
    session: Session, message: MessageQueueMixin, expected: set[Engine]
) -> None:
    name = type(message).__name__
    try:
        engine = session.get_bind(object_mapper(message)).engine
    except UnboundExecutionError as error:
        raise InvalidArgument(f"{name}: the session has no engine for this queue") from error
    if others := expected - {engine}:
        raise InvalidArgument(
            f"{name}: its queue is on {engine!r}, the session's data on {others!r}; the message "
            "can't commit with the data. Put the queue into the same database"
        )


def _sync_session(session: AnySession) -> Session:
    found: Any = session
    if not isinstance(found, Session) and callable(found):
        found = found()  # The registry of a scoped session.
    found = getattr(found, "sync_session", found)
    if not isinstance(found, Session):
        raise InvalidArgumentType(f"session={session!r}: expected a Session or an AsyncSession")
    return found
