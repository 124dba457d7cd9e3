"""INSERT statements, of Core and of a session: each row is a message of its own, or is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, Insert, event, func, insert, literal, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_vitess_messages import InvalidArgument
from sqla_vitess_messages.vitess.server import is_sqlite
from tests.backends import BACKENDS, EVERYWHERE, Backend, async_url, eventually

Execute = Callable[..., list[Any]]
MakeQueue = Callable[..., type[Any]]
LATER = time.time_ns() + 86_400 * 10**9

databases = pytest.mark.parametrize(
    "backend",
    [b for b in BACKENDS if b.transport == "auto" and b.driver is None],
    indirect=True,
    ids=lambda b: b.name,
)


@pytest.fixture(params=["connection", "session"])
def execute(request: pytest.FixtureRequest, engine: Engine) -> Execute:
    """Return a function that executes a statement in a transaction, and returns its rows."""

    def execute(statement: Insert, *parameters: Any) -> list[Any]:
        with Session(engine) as session, session.begin():
            executor = session if request.param == "session" else session.connection()
            result = executor.execute(statement, *parameters)
            return list(result) if statement.exported_columns else []

    return execute


def rows_of(engine: Engine, queue: type[Any]) -> dict[str, Any]:
    """Return the queue's rows by their body, and check what holds of each."""
    with engine.connect() as connection:
        rows = connection.execute(select(queue.__table__)).all()
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert 0 < row.id < 2**63
        assert (row.epoch, row.priority, row.time_acked) == (0, 50, None)
        assert abs(row.time_created - time.time_ns()) < 60 * 10**9
        assert row.time_scheduled == row.time_next
    return {row.body: row for row in rows}


def is_now(row: Any) -> bool:
    return bool(row.time_next == row.time_created)


def upsert(engine: Engine, queue: type[Any], changed: str = "id") -> Any:
    """Return an INSERT that sets a column of rows whose id exists; by default it ignores them."""
    column = queue.__table__.c[changed]
    if not is_sqlite(engine.dialect):
        # Vitess tells of a newer MySQL than these tests' 8.0.15, which knows no alias of new rows.
        engine.dialect._requires_alias_for_on_duplicate_key = False  # type: ignore[attr-defined]
        return mysql.insert(queue).on_duplicate_key_update({changed: func.values(column)})
    statement = sqlite.insert(queue)
    if changed == "id":
        return statement.on_conflict_do_nothing()
    values = {changed: statement.excluded[changed]}
    return statement.on_conflict_do_update(index_elements=["id"], set_=values)


@databases
def test_multiple_values_are_messages_of_their_own(
    engine: Engine, queue: type[Any], execute: Execute
) -> None:
    execute(insert(queue).values([{"body": body} for body in "abc"]))
    execute(insert(queue).values([{"body": body, "time_next": LATER} for body in "de"]))
    execute(insert(queue).values([{"body": body, "time_scheduled": LATER} for body in "fg"]))
    execute(insert(queue).values([{"body": literal("h")}, {"body": "i"}]))
    rows = rows_of(engine, queue)
    assert sorted(rows) == list("abcdefghi")
    assert all(is_now(rows[body]) for body in "abchi")
    assert {rows[body].time_next for body in "defg"} == {LATER}


@databases
def test_each_row_of_multiple_values_has_its_own_times(
    engine: Engine, queue: type[Any], execute: Execute
) -> None:
    for name in ("time_next", "time_scheduled"):
        execute(
            insert(queue).values(
                [
                    {"body": f"{name} 1", name: LATER + 1},
                    {"body": f"{name} 2", name: LATER + 2},
                ]
            )
        )
    execute(insert(queue).values([{"body": "now"}, {"body": "later", "time_next": LATER}]))
    rows = rows_of(engine, queue)
    assert is_now(rows.pop("now"))
    assert {body: row.time_next - LATER for body, row in rows.items()} == {
        "time_next 1": 1, "time_next 2": 2, "time_scheduled 1": 1, "time_scheduled 2": 2,
        "later": 0,
    }  # fmt: skip


@databases
def test_a_statement_executed_again_makes_other_messages(
    engine: Engine, queue: type[Any], execute: Execute
) -> None:
    """SQLAlchemy caches the compiled statement, but no value of a default."""
    for number in range(3):
        execute(insert(queue).values([{"body": f"{number} a"}, {"body": f"{number} b"}]))
        execute(insert(queue), [{"body": f"{number} c"}, {"body": f"{number} d"}])
    assert len(rows_of(engine, queue)) == 12


@databases
def test_upserts_make_messages_or_change_them(
    engine: Engine, queue: type[Any], execute: Execute, backend: Backend
) -> None:
    shard = {"tenant": 1} if backend.server == "sharded" else {}
    given = {"id": 7, "time_scheduled": LATER, **shard}
    execute(upsert(engine, queue).values([{"body": "a"}, {"body": "b"}]))
    execute(upsert(engine, queue).values([{**given, "body": "c"}]))
    execute(upsert(engine, queue).values([{**given, "body": "no"}, {**given, "body": "nor"}]))
    assert sorted(rows_of(engine, queue)) == ["a", "b", "c"]
    other = {"id": 8, "time_scheduled": LATER + 1, **shard}
    changing = upsert(engine, queue, "body")
    execute(changing.values([{**given, "body": "changed"}, {**other, "body": "d"}]))
    rows = rows_of(engine, queue)
    assert sorted(rows) == ["a", "b", "changed", "d"]
    assert (rows["changed"].id, rows["changed"].time_next) == (7, LATER)
    assert (rows["d"].id, rows["d"].time_next) == (8, LATER + 1)


@databases
def test_returning_has_the_values_of_each_row(
    engine: Engine, queue: type[Any], execute: Execute
) -> None:
    columns = (queue.id, queue.body, queue.time_next)
    many = insert(queue).returning(*columns)
    if not engine.dialect.insert_returning:
        pytest.skip("MySQL and Vitess have no INSERT … RETURNING")
    returned = execute(many.values([{"body": "a"}, {"body": "b"}]))
    ordered = insert(queue).returning(*columns, sort_by_parameter_order=True)
    in_order = execute(ordered, [{"body": "c"}, {"body": "d"}])
    assert [row.body for row in in_order] == ["c", "d"]
    rows = rows_of(engine, queue)
    for row in [*returned, *in_order]:
        assert (row.id, row.time_next) == (rows[row.body].id, rows[row.body].time_next)


@databases
def test_an_insert_from_select_is_refused_before_it_reaches_the_database(
    engine: Engine, queue: type[Any], execute: Execute
) -> None:
    execute(insert(queue).values([{"body": "a"}, {"body": "b"}]))
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *event: sent.append(event[2]))
    with pytest.raises(InvalidArgument, match="select an id for each message"):
        execute(insert(queue).from_select(["body"], select(queue.body)))
    selected = select(queue.id + 1, queue.body, literal(LATER))
    with pytest.raises(InvalidArgument, match="give time_next as well"):
        execute(insert(queue).from_select(["id", "body", "time_scheduled"], selected))
    assert sent == []


@databases
def test_an_insert_from_select_with_ids_makes_messages(
    engine: Engine, make_queue: MakeQueue, execute: Execute, backend: Backend
) -> None:
    source, queue = make_queue(), make_queue()
    execute(insert(source).values([{"body": "a"}, {"body": "b"}]))
    names = ["id", "body", *(["tenant"] if backend.server == "sharded" else [])]
    selected = select(*(getattr(source, name) for name in names))
    execute(insert(queue).from_select(names, selected))
    rows = rows_of(engine, queue)
    assert {row.id for row in rows.values()} == {row.id for row in rows_of(engine, source).values()}
    assert all(map(is_now, rows.values()))


@databases
def test_a_time_that_only_the_database_knows_is_not_guessed(
    engine: Engine, queue: type[Any], execute: Execute
) -> None:
    for values in (
        {"time_scheduled": literal(LATER) + 0},
        [{"time_scheduled": literal(LATER) + 0}],
    ):
        with pytest.raises(InvalidArgument, match="give time_next as well"):
            execute(insert(queue).values(values))
    both = {"time_scheduled": literal(LATER) + 0, "time_next": literal(LATER) + 0, "body": "x"}
    execute(insert(queue).values(both))
    assert rows_of(engine, queue)["x"].time_next == LATER


@pytest.mark.parametrize("backend", EVERYWHERE, indirect=True, ids=lambda b: b.name)
def test_messages_of_every_statement_arrive_once(
    engine: Engine, queue: type[Any], subscribe: Callable[..., Any], backend: Backend
) -> None:
    bodies = [f"{way} {number}" for way in ("core", "orm", "upsert", "async") for number in (1, 2)]

    def rows(way: str) -> list[dict[str, str]]:
        return [{"body": body} for body in bodies if body.startswith(way)]

    subscriber = subscribe(queue)
    with Session(engine) as session, session.begin():
        session.connection().execute(insert(queue).values(rows("core")))
        session.execute(insert(queue).values(rows("orm")))
        session.execute(upsert(engine, queue).values(rows("upsert")))
    asyncio.run(_insert_with_asyncio(engine, backend, insert(queue).values(rows("async"))))
    received: list[Any] = []
    eventually(lambda: received.extend(subscriber.get_many(8, 20)) or len(received) >= 8)
    assert sorted(message.body for message in received) == sorted(bodies)
    with Session(engine) as session, session.begin():
        queue.ack_all(session, received)


async def _insert_with_asyncio(engine: Engine, backend: Backend, statement: Insert) -> None:
    driver = "aiosqlite" if backend.server is None else "asyncmy"
    async_engine = create_async_engine(async_url(engine.url, driver))
    async with AsyncSession(async_engine) as session, session.begin():
        await session.execute(statement)
    await async_engine.dispose()
