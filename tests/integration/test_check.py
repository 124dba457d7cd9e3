"""``sqla-vitess-messages check`` and ``ddl``: the problems of queues in a database."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    MetaData,
    Table,
    create_engine,
    inspect,
    make_url,
    text,
    update,
)
from sqlalchemy.orm import mapped_column
from sqlalchemy.schema import SetTableComment
from typer.testing import CliRunner, Result

from sqla_vitess_messages import InvalidArgument, Periodic, QueueOptions
from sqla_vitess_messages.cli.app import app
from sqla_vitess_messages.cli.check import check_queues
from sqla_vitess_messages.cli.ddl_script import statements
from sqla_vitess_messages.cli.targets import load_queues
from sqla_vitess_messages.table.options import OPTIONS_KEY, queue_options
from tests.backends import BACKENDS, enqueue, make_queue_class
from tests.servers import server_url
from tools.vitess import VtCombo

MakeQueue = Callable[..., type[Any]]

SERVERS = [b for b in BACKENDS if b.name in ("sqlite", "mysql", "mariadb", "vitess")]
servers = pytest.mark.parametrize("backend", SERVERS, indirect=True, ids=lambda b: b.name)
MYSQL = [b for b in SERVERS if b.server]


def found(engine: Engine, queue: type[Any]) -> list[tuple[bool, str]]:
    """Return the problems of one queue; the database has tables of other tests as well."""
    with engine.connect() as connection:
        findings = check_queues(connection, [queue.__table__])
    return [(f.is_error, f.problem) for f in findings if f.table == queue.__table__.name]


@servers
def test_nothing_is_wrong_with_a_new_queue(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue()
    enqueue(engine, queue())
    assert found(engine, queue) == []
    assert found(engine, make_queue(layout="minimal")) == []


@servers
def test_a_missing_table_column_or_index_is_reported(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue()
    wider = make_queue_class(
        QueueOptions(), attributes={"more": mapped_column(BigInteger, nullable=True)}
    )
    assert found(engine, wider) == [(True, "the database has no such table")]
    name = queue.__table__.name
    wider.__table__.name = name
    index = "poller_idx" if engine.dialect.name != "sqlite" else f"{name}_poller_idx"
    with engine.begin() as connection:
        on = "" if engine.dialect.name == "sqlite" else f" ON {name}"
        connection.execute(text(f"DROP INDEX {index}{on}"))
    assert (True, "lacks the columns more") in found(engine, wider)
    assert (True, f"lacks the index {index}: each pull reads all rows") in found(engine, queue)


@servers
def test_rows_that_are_stuck_are_reported(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue()
    enqueue(engine, *(queue(deliver_in=3600) for _ in range(3)))
    stuck, looping, _ = (m.id for m in _all(engine, queue))
    with engine.begin() as connection:
        connection.execute(update(queue).where(queue.id == stuck).values(time_next=None))
        acking = update(queue).where(queue.id == looping)
        connection.execute(acking.values(time_acked=time.time_ns()))  # Older ones are purged.
    problems = [problem for is_error, problem in found(engine, queue) if is_error]
    assert problems[0].startswith("1 messages are neither acked nor have a time_next")
    assert problems[1].startswith("1 acked messages have a time_next")
    assert len(problems) == 2


def _all(engine: Engine, queue: type[Any]) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(queue.__table__.select()))


@pytest.mark.parametrize("backend", MYSQL, indirect=True, ids=lambda b: b.name)
def test_other_options_are_a_warning(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue()
    table = queue.__table__
    table.info[OPTIONS_KEY] = queue_options(table).replace(ack_wait=99)
    [(is_error, problem)] = found(engine, queue)
    assert not is_error
    assert "vt_ack_wait=99" in problem


@pytest.mark.parametrize("backend", MYSQL[:1], indirect=True, ids=lambda b: b.name)
def test_options_that_vitess_misreads_are_reported(engine: Engine, make_queue: MakeQueue) -> None:
    queue = make_queue()
    small = queue.__table__.comment.replace("vt_cache_size=10000", "vt_cache_size=5")
    with engine.connect() as connection:
        connection.execute(SetTableComment(Table(queue.__table__.name, MetaData(), comment=small)))
    [(is_error, problem)] = found(engine, queue)
    assert not is_error  # It is no Vitess.
    assert "cache_size=5: must be at least batch_size=10" in problem


def test_a_wrong_vschema_is_reported() -> None:
    engine = create_engine(server_url("sharded"))
    attributes = {"tenant": mapped_column(BigInteger, nullable=False)}
    unknown = make_queue_class(QueueOptions())
    unknown.__table__.create(engine)
    [(is_error, problem)] = found(engine, unknown)
    assert is_error
    assert "the vschema has no vindex for it" in problem
    sharded = make_queue_class(QueueOptions(shard_by="tenant", vindex="hash"))
    sharded.metadata.create_all(engine)
    assert found(engine, sharded) == []
    for options, expected in [
        (QueueOptions(), "doesn't say that it is sharded by tenant"),
        (QueueOptions(shard_by="tenant", vindex="xxhash"), "is sharded by hash(tenant), and the"),
    ]:
        other = make_queue_class(options, attributes=attributes if not options.shard_by else {})
        other.__table__.name = sharded.__table__.name
        [(is_error, problem)] = found(engine, other)
        assert not is_error
        assert expected in problem
    sharded.metadata.drop_all(engine)
    unknown.__table__.drop(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("target", "is_shard"),
    [("sharded", False), ("sharded@primary", False), ("sharded:-80", True),
     ("sharded:-80@primary", True), ("main:0", True)],
)  # fmt: skip
def test_a_url_of_a_shard_is_a_warning_and_its_keyspace_is_checked(
    target: str, is_shard: bool
) -> None:
    keyspace = "main" if target == "main:0" else "sharded"
    options = QueueOptions(shard_by="tenant", vindex="hash") if keyspace == "sharded" else None
    queue = make_queue_class(options or QueueOptions())
    engine = create_engine(make_url(server_url("sharded")).set(database=keyspace))
    queue.metadata.create_all(engine)
    of_target = create_engine(engine.url.set(database=target))
    assert found(of_target, queue) == []
    with of_target.connect() as connection:
        findings = [f for f in check_queues(connection, []) if f.table == target]
    assert [("locks nothing" in f.problem, f.is_error) for f in findings] == (
        [(True, False)] if is_shard else []
    )
    assert all(f"name the keyspace alone, '{keyspace}'" in f.remedy for f in findings)
    queue.metadata.drop_all(engine)
    assert found(of_target, queue) == [(True, "the database has no such table")]
    engine.dispose()
    of_target.dispose()


@pytest.mark.parametrize(("gate", "slow"), [("vtgate", True), ("vtgate-fast", False)])
def test_a_flush_delay_that_hurts_streams_is_a_warning(gate: str, slow: bool) -> None:
    engine = create_engine(server_url(gate))
    with engine.connect() as connection:
        findings = [f for f in check_queues(connection, []) if f.table == "vtgate"]
    assert bool(findings) is slow
    assert not any(finding.is_error for finding in findings)
    engine.dispose()


def test_a_malformed_table_that_harms_the_others_is_reported(isolated_vitess: VtCombo) -> None:
    engine = create_engine(isolated_vitess.url())
    fine = make_queue_class(QueueOptions())
    fine.metadata.create_all(engine)
    comment = QueueOptions().to_comment()
    classic = "id bigint primary key, epoch bigint, time_next bigint, time_acked bigint"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE TABLE legacy ({classic}) COMMENT '{comment}'"))
        connection.execute(text(f"CREATE TABLE spaced ({classic}) COMMENT 'vitess_message, x=1'"))
        problems = {
            finding.table: finding for finding in check_queues(connection, [fine.__table__])
        }
    problems.pop("vtgate", None)
    assert problems.keys() == {"legacy", "spaced"}
    assert "lacks the columns priority (it has the classic layout)" in problems["legacy"].problem
    assert "stopped reloading" in problems["spaced"].problem
    engine.dispose()


MODELS = """
from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqla_vitess_messages import MessageQueueMixin, QueueOptions

class Base(DeclarativeBase):
    pass

class Task(MessageQueueMixin, Base):
    __tablename__ = "task"
    __queue__ = QueueOptions(shard_by="user_id", vindex="hash")
    user_id: Mapped[int] = mapped_column(BigInteger, index=True)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    name = f"models_{secrets.token_hex(6)}"
    (tmp_path / f"{name}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_exit_code_reports_the_result(tmp_path: Path, models: str) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    done = run("check", "--url", url, f"{models}:Base")
    assert done.exit_code == 1
    assert "error: task: the database has no such table\n  remedy: create_all" in done.stdout
    engine = create_engine(url)
    for statement in run("ddl", "--dialect", "sqlite", f"{models}:Base").stdout.split(";"):
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
    assert "task_poller_idx" in {index["name"] for index in inspect(engine).get_indexes("task")}
    engine.dispose()
    done = run("check", "--url", url, f"{models}:Base")
    assert (done.exit_code, done.stdout) == (0, "1 queues, nothing is wrong\n")
    done = run("check", "--url", url, f"{models}:nothing")
    assert done.exit_code == 2
    assert "has no 'nothing'" in done.stderr
    done = run("check", "--url", "mysql+pymysql://u:s3cret@127.0.0.1:1/x", f"{models}:Base")
    assert done.exit_code == 2
    assert "s3cret" not in done.stdout + done.stderr


def test_ddl_includes_the_vschema() -> None:
    options = QueueOptions(shard_by="tenant", vindex="hash")
    queue = make_queue_class(options)
    table, vindex = statements([queue.__table__], "mysql")
    assert table.startswith(f"CREATE TABLE {queue.__table__.name} (")
    assert "INDEX poller_idx (time_acked, priority, time_next desc)" in table
    name = queue.__table__.name
    assert vindex == f"ALTER VSCHEMA ON `{name}` ADD VINDEX `hash` (`tenant`) USING `hash`"
    with pytest.raises(InvalidArgument, match="expected mysql, mariadb or sqlite"):
        list(statements([queue.__table__], "oracle"))
    with pytest.raises(InvalidArgument, match="no declarative base"):
        load_queues("tests.backends:BACKENDS")


def test_ddl_includes_the_table_of_pauses_once() -> None:
    options = QueueOptions(shard_by="tenant", vindex="hash", pausable=True)
    queue = make_queue_class(options).__table__
    on_vitess = list(statements([queue, queue], "mysql"))
    assert [text.startswith("CREATE TABLE message_queue_pauses") for text in on_vitess[-2:]] == [
        True, False,
    ]  # fmt: skip
    assert on_vitess[-1] == (
        "ALTER VSCHEMA ON `message_queue_pauses` ADD VINDEX `xxhash` (`queue`) USING `xxhash`"
    )
    assert list(statements([queue], "sqlite"))[-1].startswith("CREATE TABLE message_queue_pauses")


def test_check_and_ddl_know_the_table_of_last_ticks(tmp_path: Path) -> None:
    queue = make_queue_class(QueueOptions())
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    queue.metadata.create_all(engine)
    assert not any("message_queue_ticks" in text for text in statements([queue.__table__], "mysql"))
    Periodic("poll", timedelta(minutes=5), lambda _tick: None)
    assert list(statements([queue.__table__], "mysql"))[-1].startswith(
        "CREATE TABLE message_queue_ticks"
    )
    with engine.connect() as connection:
        [finding] = check_queues(connection, [queue.__table__])
    assert finding.is_error
    assert (finding.table, finding.problem) == (
        "message_queue_ticks",
        "the database has no such table",
    )
    queue.metadata.create_all(engine)
    with engine.connect() as connection:
        assert check_queues(connection, [queue.__table__]) == []
    engine.dispose()
