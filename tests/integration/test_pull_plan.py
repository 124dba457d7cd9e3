"""The cost of pulling and settling is independent of acked, scheduled and dead messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, select, text, update

from sqla_vitess_messages import clock
from sqla_vitess_messages.rows.states import DEAD
from sqla_vitess_messages.transports.engines import dedicated_engine
from sqla_vitess_messages.transports.leaser import ShardLeaser
from sqla_vitess_messages.vitess.server import is_vitess
from tests.backends import BACKENDS, enqueue

MakeQueue = Callable[..., type[Any]]

ROWS = 200_000
BLOCK = 5_000
SERVERS = [b for b in BACKENDS if b.name in ("sqlite", "mysql", "mariadb", "vitess")]


def fill(engine: Engine, model: type[Any]) -> None:
    """Insert 200,000 messages: half are acked, the others are scheduled, a tenth of them dead."""
    now = clock.now()
    later = now + clock.to_nanoseconds(86_400)
    rows = [
        {"time_next": None, "time_acked": now}
        if number % 2
        else {"time_next": DEAD if number % 20 == 0 else later + number, "time_acked": None}
        for number in range(BLOCK)
    ]
    table = model.__table__
    common = {"time_scheduled": now, "time_created": now, "epoch": 1, "body": "x"}
    kept = {name: value for name, value in common.items() if name in table.c}
    with engine.begin() as connection:
        connection.execute(
            insert(model), [{**kept, **row, "id": number} for number, row in enumerate(rows)]
        )
    for start in range(BLOCK, ROWS, BLOCK):
        copy = [column + start if column.name == "id" else column for column in table.c]
        block = select(*copy).where(table.c.id < BLOCK)
        with engine.begin() as connection:
            connection.execute(insert(table).from_select(list(table.c), block, False))


@pytest.fixture
def leaser_engine(url: str) -> Iterator[Engine]:
    engine = dedicated_engine(url)
    yield engine
    engine.dispose()


def rows_read(connection: Connection) -> int:
    """Return how many index entries and rows this connection has read so far.

    It is 0 for SQLite, which doesn't count them, and for vtgate, which pools its connections.
    """
    if connection.dialect.name == "sqlite" or is_vitess(connection):
        return 0
    status = connection.execute(text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    return sum(int(value) for _name, value in status)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        *((backend, "portable") for backend in SERVERS),
        *((backend, "minimal") for backend in SERVERS if backend.name in ("sqlite", "mysql")),
    ],
    indirect=["backend"],
    ids=lambda value: getattr(value, "name", value),
)
def test_pulling_and_settling_read_by_index_only_what_they_need(
    engine: Engine, make_queue: MakeQueue, leaser_engine: Engine, layout: str
) -> None:
    queue = make_queue(ack_wait=60, layout=layout)
    fill(engine, queue)
    enqueue(engine, *(queue(priority=priority) for priority in (10, 50, 50, 90, 90, 90, 90)))
    leaser: ShardLeaser[Any] = ShardLeaser(queue, leaser_engine)
    sent: list[tuple[str, Any]] = []

    @event.listens_for(leaser_engine, "before_cursor_execute")
    def record(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        sent.append((statement, parameters))

    with leaser_engine.connect() as connection:
        before = rows_read(connection)
    sent.clear()
    assert leaser.seconds_until_due() == 0
    messages = leaser.lease(10).messages
    assert [message.priority for message in messages] == [10, 50, 50, 90, 90, 90, 90]
    with leaser_engine.begin() as connection:
        messages[0].ack(connection)
        queue.ack_all(connection, messages[1:3])
        queue.fail_all(connection, messages[3:5])
        assert queue.requeue(connection, messages[3:5]) == 2
    leaser.release(messages[5:])
    # A backlog, of which the oldest are pulled.
    enqueue(engine, *(queue(priority=50) for _ in range(30)))
    assert [leaser.lease(10).size for _ in range(3)] == [10] * 3
    statements = list(sent)
    assert len(statements) > 6
    with (
        leaser_engine.connect() as connection
    ):  # The pool's only connection, which has sent all of the statements.
        assert rows_read(connection) - before < 200
        for statement, parameters in statements:
            _check_plan(connection, statement, parameters)


def _check_plan(connection: Connection, statement: str, parameters: Any) -> None:
    """Check that a statement finds its rows by an index, in order, and reads few of them."""
    by_id = " IN (" in statement
    if connection.dialect.name == "sqlite":
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        for step in plan:
            assert "USING" in step.detail, (statement, plan)
            assert "TEMP B-TREE" not in step.detail, (statement, plan)
            found_by = ("id=?",) if by_id else ("id=?", "time_next<?", "priority>?")
            if "LIMIT" in statement:  # Of the first row.
                found_by += ("time_next>?", "priority=?")
            assert any(term in step.detail for term in found_by), (statement, plan)
    else:
        indexes = ("id_idx", "PRIMARY") if by_id else ("poller_idx", "next_idx", "PRIMARY")
        for step in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).mappings():
            assert step["key"] in indexes, dict(step)
            assert "filesort" not in (step["Extra"] or ""), dict(step)
            assert step["type"] in ("range", "ref", "const", "eq_ref"), (statement, dict(step))


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        *((backend, "portable") for backend in SERVERS),
        *((SERVERS[0], layout) for layout in ("minimal", "classic")),
        *((SERVERS[1], layout) for layout in ("minimal", "classic")),
    ],
    indirect=["backend"],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("ties", [1, 7])
def test_what_has_been_due_for_longest_comes_first(
    engine: Engine, make_queue: MakeQueue, leaser_engine: Engine, layout: str, ties: int
) -> None:
    """Also when several are due since the same time, others are leased, and some come back."""
    queue = make_queue(ack_wait=60, layout=layout)
    now, table = clock.now(), queue.__table__
    messages = [queue() for _ in range(60)]
    enqueue(engine, *messages)
    with engine.begin() as connection:
        ids = connection.scalars(select(table.c.id)).all()
        for number, message_id in enumerate(sorted(ids)):
            since = now - clock.to_nanoseconds(1000 - number // ties)
            connection.execute(
                update(table).where(table.c.id == message_id).values(time_next=since)
            )
    for vitess in (False, True):
        leaser: ShardLeaser[Any] = ShardLeaser(queue, leaser_engine, vitess=vitess)
        rest = sorted(ids)
        for limit in (1, 10, 20, 1, 40):
            pulled = leaser.lease(limit).messages
            numbers = [sorted(ids).index(message.id) // ties for message in pulled]
            assert numbers == [sorted(ids).index(one) // ties for one in rest[: len(pulled)]]
            rest = [one for one in rest if one not in {message.id for message in pulled}]
        assert not rest
        with engine.begin() as connection:
            for number, message_id in enumerate(sorted(ids)):
                since = now - clock.to_nanoseconds(1000 - number // ties)
                values = {"time_next": since, "epoch": 3}
                connection.execute(update(table).where(table.c.id == message_id).values(values))


@pytest.mark.parametrize(
    "backend", [b for b in SERVERS if b.server], indirect=True, ids=lambda b: b.name
)
def test_rows_that_others_have_locked_are_passed_over(
    engine: Engine, make_queue: MakeQueue, leaser_engine: Engine
) -> None:
    queue = make_queue(ack_wait=60)
    enqueue(engine, *(queue() for _ in range(40)))
    table = queue.__table__
    leaser: ShardLeaser[Any] = ShardLeaser(queue, leaser_engine)
    leaser.lease(1)  # So that the leaser knows of a backlog.
    oldest = select(table.c.id).order_by(table.c.time_next).limit(20)
    with engine.begin() as connection:
        locked = set(connection.scalars(oldest))
        for message_id in locked:  # One by one: a scan would lock every row.
            row = select(table.c.id).where(table.c.id == message_id)
            connection.execute(row.with_for_update())
        pulled = {message.id for message in leaser.lease(15).messages}
    assert len(pulled) == 15
    assert not pulled & locked
