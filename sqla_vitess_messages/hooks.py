"""Enqueue messages when a session commits, or when its flush writes a change.

.. code-block:: python

    on_commit(session, lambda: Invoice(total=cart.total))

    @emits(User, "insert", "update")
    def greet(user):
        return Welcome(user_id=user.id)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from sqlalchemy import Connection, Delete, Insert, Update, event, inspect
from sqlalchemy.orm import (
    FromStatement,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    object_mapper,
    object_session,
    scoped_session,
)

from .errors import InvalidArgument, InvalidArgumentType
from .mixin import MessageQueueMixin
from .rows.enqueue_unique import IfExists, check_if_exists
from .sessions import AnySession, add_messages, connection_for, engines_of, sync_session
from .shown import shown
from .topics.topic import Emitted, messages_of

__all__ = ["Change", "emits", "on_commit", "without_emits"]

F = TypeVar("F", bound=Callable[[Any], Any])


Change = Literal["insert", "update", "delete"]
"""A change of a row, as :func:`emits` names it."""

_FACTORIES, _CHANGES, _OFF = (
    f"sqla_vitess_messages.{name}" for name in ("factories", "changes", "off")
)
"""Keys in ``Session.info``."""

_MAX_ROUNDS = 100
"""How often factories may add factories, as SQLAlchemy's commit flushes at most so often."""


def on_commit(
    session: AnySession, factory: Callable[[], Emitted], *, if_exists: IfExists = "raise"
) -> None:
    """Call ``factory`` just before the transaction's last flush, and enqueue what it returns.

    The factory is discarded when the transaction rolls back, or the savepoint in which it was
    given. If it raises an exception, the transaction doesn't commit, and its next commit calls it
    again.

    :param session: a Session, a scoped_session or one of their asyncio counterparts. If it has no
        transaction, one begins.
    :param factory: takes no arguments and returns a message, an event of a topic, several of them,
        or None. It may call ``on_commit`` again.
    :param if_exists: as of :meth:`.EnqueueableQueue.enqueue`. By default, the session adds the
        messages, and its flush fails if one of the same key exists.
    :raises InvalidArgument: for another value of ``if_exists``.
    :raises InvalidArgumentType: when an argument has another type.
    """
    if not callable(factory):
        raise InvalidArgumentType(
            f"factory={shown(factory)}: expected a callable without arguments"
        )
    check_if_exists(if_exists)
    session = sync_session(session)
    factories: _Factories | None = session.info.get(_FACTORIES)
    if factories is None:
        factories = session.info[_FACTORIES] = _Factories(session)
    factories.add(session, factory, if_exists)


class _Factories:
    """The factories of one session, each with the transaction or savepoint it belongs to."""

    def __init__(self, session: Session) -> None:
        self._factories: deque[tuple[SessionTransaction, Callable[[], Emitted], IfExists]] = deque()
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_soft_rollback", self._after_soft_rollback)
        event.listen(session, "after_transaction_end", self._after_transaction_end)

    def add(self, session: Session, factory: Callable[[], Emitted], if_exists: IfExists) -> None:
        transaction = session.get_nested_transaction() or session.get_transaction()
        self._factories.append((transaction or session.begin(), factory, if_exists))

    def _before_commit(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # A savepoint is released. The transaction may still roll back.
        for _ in range(_MAX_ROUNDS):
            if not self._factories:
                return
            session.flush()  # So that the factories see generated keys.
            for _ in range(len(self._factories)):
                _transaction, factory, if_exists = self._factories[0]
                messages = messages_of(factory(), factory)
                for message in messages:
                    connection_for(session, type(message), engines_of(session))
                add_messages(session, messages, if_exists)
                self._factories.popleft()  # Not before: the next commit calls one that failed.
        raise InvalidArgument(
            f"on_commit: the factories still added others after {_MAX_ROUNDS} rounds"
        )

    def _after_soft_rollback(self, _session: Session, undone: SessionTransaction) -> None:
        kept = [item for item in self._factories if undone not in _ancestry(item[0])]
        self._factories = deque(kept)

    def _after_transaction_end(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self._factories.clear()


def _ancestry(transaction: SessionTransaction | None) -> Iterator[SessionTransaction]:
    """Yield a transaction or savepoint, and those around it."""
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


class _Emitter(NamedTuple):
    """A function decorated by :func:`emits`."""

    model: type[Any]
    function: Callable[[Any], Emitted]
    when: Callable[[Any], object] | None
    if_exists: IfExists


class _Changed(NamedTuple):
    """An object that the current flush has written, and the function to call for it."""

    changed: object
    emitter: _Emitter


_emitters: dict[tuple[type[Any], Change], list[_Emitter]] = defaultdict(list)


def emits(
    model: type[Any],
    *changes: Change,
    when: Callable[[Any], object] | None = None,
    if_exists: IfExists = "raise",
) -> Callable[[F], F]:
    """Decorate a function that returns messages about an inserted, updated or deleted object.

    The function is called at the end of the flush that wrote the change, once for each object. Its
    messages are inserted in the same flush. Generated keys are set, and
    ``sqlalchemy.inspect(obj).attrs.name.history`` has the old and the new values; the old values of
    expired attributes only if they are mapped with ``active_history=True``. An exception makes the
    flush fail.

    Only the unit of work has objects. Therefore sessions refuse ORM-enabled and Core statements
    that insert, update or delete such rows; see :func:`without_emits`. Changes that bypass the
    session go unnoticed: statements on a Connection or as text, the legacy ``Session.bulk_…``
    methods, and actions of the database itself, such as ON DELETE CASCADE.

    :param model: a mapped class, a base or a mixin. Its subclasses are included, also those defined
        later; but queues only if ``model`` is a queue.
    :param changes: one or more of ``"insert"``, ``"update"``, ``"delete"``.
    :param when: takes the object; the function is called only if it returns a true value.
    :param if_exists: as of :meth:`.EnqueueableQueue.enqueue`. By default, the flush fails if a
        message of the same key exists.
    :raises InvalidArgument: for an unknown change, for none, or another value of ``if_exists``.
    :raises InvalidArgumentType: when an argument has another type.
    """
    if not isinstance(model, type):
        raise InvalidArgumentType(f"model={shown(model)}: expected a class")
    if unknown := [change for change in changes if change not in get_args(Change)]:
        raise InvalidArgument(f"changes={shown(unknown)}: expected some of {get_args(Change)}")
    if not changes:
        raise InvalidArgument(f"changes=(): expected some of {get_args(Change)}")
    if when is not None and not callable(when):
        raise InvalidArgumentType(f"when={shown(when)}: expected a callable")
    check_if_exists(if_exists)

    def register(function: F) -> F:
        if not callable(function):
            raise InvalidArgumentType(f"emits decorates a function, not {shown(function)}")
        _listen_to_sessions()
        emitter = _Emitter(model, function, when, if_exists)
        for change in dict.fromkeys(changes):
            _emitters[model, change].append(emitter)
            listener = partial(_record_change, emitter, change)
            event.listen(model, f"after_{change}", listener, propagate=True)
        return function

    return register


@contextmanager
def without_emits(session: Session | scoped_session[Any]) -> Iterator[None]:
    """Write changes without calling functions decorated by :func:`emits`, as in data migrations.

    The session is flushed before and after the block, so that exactly the block's changes are
    exempt. With an AsyncSession, put the block into a function for ``AsyncSession.run_sync``.
    """
    session = sync_session(session)
    session.flush()
    session.info[_OFF] = session.info.get(_OFF, 0) + 1
    try:
        yield
        session.flush()
    finally:
        session.info[_OFF] -= 1


def _record_change(
    emitter: _Emitter, change: Change, _mapper: Mapper[Any], _connection: object, changed: object
) -> None:
    """Record that a flush writes an object: a mapper event."""
    session = object_session(changed)
    assert session is not None
    if session.info.get(_OFF) or not _concerns(emitter.model, type(changed)):
        return
    # The event also occurs for objects that turned out to need no UPDATE.
    if change == "update" and not session.is_modified(changed, include_collections=False):
        return
    session.info.setdefault(_CHANGES, []).append(_Changed(changed, emitter))


def _listen_to_sessions() -> None:
    """Listen to all sessions, from the first use of :func:`emits` on."""
    for name, listener in (
        ("before_flush", _before_flush),
        ("after_flush", _after_flush),
        ("do_orm_execute", _refuse_statements),
    ):
        if not event.contains(Session, name, listener):
            event.listen(Session, name, listener)


def _before_flush(session: Session, *_flush: object) -> None:
    session.info.pop(_CHANGES, None)  # Left from a flush that failed.


def _after_flush(session: Session, _flush: object) -> None:
    messages: dict[tuple[Connection, IfExists], list[MessageQueueMixin]] = defaultdict(list)
    for changed, emitter in session.info.pop(_CHANGES, ()):
        if emitter.when is None or emitter.when(changed):
            for message in messages_of(emitter.function(changed), emitter.function):
                engine = session.get_bind(object_mapper(changed)).engine
                connection = connection_for(session, type(message), {engine})
                messages[connection, emitter.if_exists].append(message)
    for (connection, if_exists), of_connection in messages.items():
        # In this session the messages would be inserted by the next flush. A savepoint that begins
        # with the current one would include them, and its rollback would undo them.
        with Session(connection, join_transaction_mode="rollback_only") as inner:
            add_messages(inner, of_connection, if_exists)
            inner.flush()


def _refuse_statements(state: ORMExecuteState) -> None:
    statement: Any = state.statement
    if isinstance(statement, FromStatement):
        statement = statement.element
    if not isinstance(statement, (Insert, Update, Delete)) or state.session.info.get(_OFF):
        return
    kind: Change = "insert"
    if not isinstance(statement, Insert):
        kind = "update" if isinstance(statement, Update) else "delete"
    for (model, change), emitters in _emitters.items():
        if change == kind and statement.table in _tables(model):
            raise InvalidArgument(
                f"{kind} of {statement.table}: a statement has no objects to call "
                f"{emitters[0].function.__qualname__} with, which is decorated with @emits for "
                f"{model.__name__}; change objects in the session, or use without_emits(session)"
            )


def _concerns(model: type[Any], changed: type[Any]) -> bool:
    """Return whether a change of an object of ``changed`` concerns those who listen to ``model``.

    Changes of messages concern only those who name a queue: else each message causes the next.
    """
    return issubclass(model, MessageQueueMixin) or not issubclass(changed, MessageQueueMixin)


def _tables(model: type[Any]) -> set[Any]:
    """Return the tables of a class and of its subclasses, as far as they are mapped."""
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
