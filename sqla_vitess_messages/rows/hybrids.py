"""Attributes of messages that are Python values of an instance, and SQL expressions of a class.

Conditions are about plain columns, so that they find rows by an index.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    FromClause,
    Integer,
    Null,
    Numeric,
    Table,
    TypeDecorator,
    and_,
    case,
    func,
    inspect,
    or_,
    type_coerce,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.hybrid import Comparator
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import (
    BinaryExpression,
    ClauseElement,
    ClauseList,
    ExpressionClauseList,
    Grouping,
)

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType
from ..shown import shown
from ..table.options import queue_options
from . import failures, states
from .epochs import attempts
from .lease import lease_of
from .message import NEXT_DUE_ATTRIBUTE, Message, queue_table

__all__ = ["DueComparator", "StateComparator", "as_datetime", "state_of", "time_column"]

T = TypeVar("T")


class _Nanoseconds(BigInteger):
    """A BIGINT that is compared with numbers only, as a datetime is after its conversion.

    SQLite compares it with the text that a DateTime is there, and MySQL with 20260131120000, both
    without an error.
    """

    class Comparator(BigInteger.Comparator[Any]):
        def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
            """Return what an operator makes of a time.

            :raises InvalidArgumentType: when it compares the time with SQL of another type.
            """
            result = super().operate(op, *other, **kwargs)
            if operators.is_comparison(op) and isinstance(result, BinaryExpression):
                for operand in _operands(result.right):
                    _check_is_number(operand)
            return result

    comparator_factory = Comparator


def _operands(right: Any) -> Collection[Any]:
    """Return the expressions at the right of a comparison: two of BETWEEN, any number of IN."""
    if isinstance(right, Grouping):
        right = right.element
    return right.clauses if isinstance(right, (ClauseList, ExpressionClauseList)) else [right]


def _check_is_number(operand: Any) -> None:
    found = operand.type
    while isinstance(found, TypeDecorator):
        found = found.impl
    if not isinstance(found, (Integer, Numeric, Float)) and not isinstance(operand, Null):
        raise InvalidArgumentType(
            f"a time of a message is compared with SQL of the type {found!r}; compare it with a "
            "datetime that has a time zone, with another time of a message, or with SQL that is "
            "nanoseconds since 1970, such as type_coerce(..., BigInteger)"
        )


class Timestamp(TypeDecorator[datetime]):
    """Nanoseconds since 1970 in the database, a datetime in UTC in Python."""

    impl = _Nanoseconds
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> int | None:
        return None if value is None else clock.from_datetime(value, "the time to compare with")

    def process_result_value(self, value: Any | None, _dialect: Dialect) -> datetime | None:
        return as_datetime(value)


def as_datetime(nanoseconds: int | None) -> datetime | None:
    """Return a row's time as a datetime in UTC; None of a dead message, which is never due."""
    return None if nanoseconds in (None, states.DEAD) else clock.to_datetime(nanoseconds)


def time_column(model: Any, name: str) -> ColumnElement[Any]:
    """Return a column of a class, or of an alias of it, as a datetime.

    It consists of the mapped attribute: SQLAlchemy names it in a subquery after the hybrid then.

    :return: what can't be compiled when the queue's layout has no such column.
    """
    table, _rows = _mapped(model)
    found: ColumnElement[Any] = (
        type_coerce(getattr(model, name), Timestamp) if name in table.c else _Missing(table, name)
    )
    return found


class _Missing(ColumnElement[Any]):
    """A time that a queue doesn't keep. SQLAlchemy reads such attributes of classes by itself."""

    inherit_cache = False
    type = Timestamp()

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name


@compiles(_Missing)
def _refuse_missing(element: _Missing, _compiler: SQLCompiler, **_kw: Any) -> str:
    """Refuse a statement.

    :raises InvalidArgument: with the remedy.
    """
    layout = queue_options(element.table).layout
    raise InvalidArgument(
        f"the {layout} layout of {element.table.name!r} has no column {element.name!r}, from which "
        "the time follows; use layout='portable'"
    )


def _mapped(model: Any) -> tuple[Table, FromClause]:
    """Return the table of a queue's class, and what stands for it in SQL: the table or an alias."""
    mapped = inspect(model)
    table = mapped.mapper.local_table
    return table, mapped.selectable


class _Expression(Comparator[T]):
    """An expression, and conditions on it that an index can find."""

    @property
    def type(self) -> Any:
        """The type of the expression."""
        expression: Any = self.expression
        return expression.type

    @property
    def property(self) -> Any:
        """Raise AttributeError: it stands for no mapped attribute, which ``hasattr`` then says."""
        raise AttributeError("property")

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        result: ColumnElement[Any] = op(self.__clause_element__(), *other, **kwargs)
        return result


class DueComparator(_Expression[datetime | None]):
    """The delivery time of a row in SQL: NULL for a dead message, which has none.

    :param model: the queue's class, or an alias of it.
    """

    _BY_INDEX = (operators.lt, operators.le, operators.gt, operators.ge, operators.between_op)

    def __init__(self, model: Any) -> None:
        self._due = time_column(model, "time_next")
        self._is_alive = model.time_next < states.DEAD
        super().__init__(type_coerce(func.nullif(model.time_next, states.DEAD), Timestamp))

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Return conditions on the column itself, by which an index finds the rows."""
        if op in self._BY_INDEX:
            return and_(op(self._due, *other, **kwargs), self._is_alive)
        return super().operate(op, *other, **kwargs)


class StateComparator(_Expression[str]):
    """The state of a row in SQL: an expression, and conditions that need no expression.

    :param model: the queue's class, or an alias of it.
    """

    def __init__(self, model: Any) -> None:
        table, rows = _mapped(model)
        self._queue = table.name
        self._conditions = states.conditions(table, rows)
        # With a mapped attribute, SQLAlchemy names the expression in a subquery after the hybrid.
        conditions = self._conditions | {"acked": model.time_acked.is_not(None)}
        super().__init__(case(*((condition, name) for name, condition in conditions.items())))

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Return the conditions of the states themselves, by which an index finds the rows."""
        is_one = op in (operators.eq, operators.ne)
        if is_one or (op in (operators.in_op, operators.not_in_op) and not _is_sql(other[0])):
            names = [other[0]] if is_one else list(other[0])
            self._check([name for name in names if not _is_sql(name)])
            if not any(map(_is_sql, names)):
                return self._is_any(names, negated=op in (operators.ne, operators.not_in_op))
            other = (names[0] if is_one else names,)
        return super().operate(op, *other, **kwargs)

    def _check(self, names: Collection[Any]) -> None:
        """Check that names are names of states.

        :raises InvalidArgument: for one that isn't.
        """
        for name in names:
            if not isinstance(name, str) or name not in self._conditions:
                raise InvalidArgument(_unknown(self._queue, name, self._conditions))

    def _is_any(self, names: Collection[str], *, negated: bool) -> ColumnElement[bool]:
        chosen = [
            condition
            for name, condition in self._conditions.items()
            if (name in names) is not negated
        ]
        return or_(False, *chosen)


def _unknown(queue: str, name: object, known: Collection[str]) -> str:
    text = f"state {shown(name)}: a message of {queue!r} is one of {', '.join(known)}"
    if name == "retrying":
        text += "; only with MessageFailuresMixin is one that waits for its retry told from these"
    return text


def _is_sql(value: object) -> bool:
    return hasattr(value, "__clause_element__") or isinstance(value, ClauseElement)


def state_of(message: Message) -> str:
    """Return the state of an instance: by its values, as loaded, and this process's clock.

    The values of a received message are those from before its delivery. It is leased until it is
    settled in this process, or its lease ends.
    """
    row: Any = message
    kept = failures.are_kept(queue_table(type(message)))
    lease = lease_of(message)
    if lease is not None and lease.is_received and lease.epoch == row.epoch:
        if lease.is_settled:
            settled = {"ack": "acked", "fail": "dead", "retry": "retrying" if kept else "leased"}
            return settled[lease.outcome or "retry"]
        return "ready" if lease.is_expired else "leased"
    if row.time_next is None or row.time_next == states.DEAD:
        return "acked" if row.time_next is None else "dead"
    if row.time_next <= clock.now():
        return "ready"
    if not _is_handed_out(row):
        return "scheduled"
    return "retrying" if kept and row.failed_epoch == row.epoch else "leased"


def _is_handed_out(row: Any) -> bool:
    """Return whether a message that isn't due was handed out; see :func:`.states.is_leased`.

    Of one that was replaced while it is held, the attempts don't show it.
    """
    if attempts(row.epoch) > 0:
        return True
    if not states.is_replaceable(queue_table(type(row))):
        return False
    return getattr(row, NEXT_DUE_ATTRIBUTE) not in (None, row.time_next)
