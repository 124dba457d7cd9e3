"""Alembic's commands on queues: the scripts of autogenerate, and their effect on a database."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import MetaData, Table, inspect, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import SetTableComment

from sqla_vitess_messages import QueueOptions, Scheduler
from sqla_vitess_messages.table import ticks
from tests.migrations.project import CommandFailed, Project, everywhere

WITH_COMMENTS = ["mysql", "mariadb", "vtgate"]

WELCOME = """
class Welcome(MessageQueueMixin, Base):
    __tablename__ = "{name}_welcome"
    __queue__ = QueueOptions(ack_wait=30, shard_by="user_id", vindex="hash")
    user_id: Mapped[int] = mapped_column(BigInteger)
    address: Mapped[str] = mapped_column(String(255), index=True)
"""

CREATED = """\
    op.create_message_queue(
        '{name}_welcome',
        sa.Column('user_id', sa.BigInteger(), nullable=False),
        sa.Column('address', sa.String(length=255), nullable=False),
        ack_wait=30,
        purge_after=86400,
        batch_size=10,
        cache_size=10000,
        poller_interval=30,
        shard_by=['user_id'],
        vindex='hash',
    )
    op.create_index(op.f('ix_{name}_welcome_address'), '{name}_welcome', ['address'], unique=False)
"""


with_comments = pytest.mark.parametrize("project", WITH_COMMENTS, indirect=True)


def comment_of(project: Project, table: str) -> str:
    return inspect(project.engine).get_table_comment(table)["text"] or ""


def columns_of(project: Project, table: str) -> list[str]:
    return [column["name"] for column in inspect(project.engine).get_columns(table)]


@everywhere
def test_a_new_queue_is_created_dropped_and_created_again(project: Project) -> None:
    models = project.write_models(WELCOME)
    script = project.revision()
    assert CREATED.replace("{name}", project.name) in script
    assert f"op.drop_message_queue('{project.name}_welcome')" in script
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session, session.begin():
        session.add(models.Welcome(user_id=1, address="ada@example.com"))
    project.alembic("downgrade", "base")
    assert not inspect(project.engine).has_table(f"{project.name}_welcome")
    project.alembic("upgrade", "head")
    project.write_models("")
    script = project.revision()
    assert f"op.drop_message_queue('{project.name}_welcome')" in script
    assert "op.create_message_queue(" in script
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    project.write_models(WELCOME)
    project.alembic("stamp", "head")
    assert project.is_up_to_date()


@with_comments
def test_other_options_are_one_readable_operation_and_back(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    name = f"{project.name}_welcome"
    before = comment_of(project, name)
    project.write_models(WELCOME.replace("ack_wait=30", "ack_wait=60, max_backoff=3600"))
    script = project.revision()
    assert script.count("op.") == 2
    upgrade, downgrade = script.split("def downgrade")
    assert "op.alter_message_queue(" in upgrade
    assert "ack_wait=60," in upgrade
    assert "max_backoff=3600," in upgrade
    assert "ack_wait=30," in downgrade
    project.alembic("upgrade", "head")
    assert QueueOptions.from_comment(comment_of(project, name)).ack_wait == 60
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    assert comment_of(project, name) == before


@with_comments
def test_options_are_compared_by_their_meaning(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    name = f"{project.name}_welcome"
    first, *others = comment_of(project, name).replace("ack_wait=30", "ack_wait=30.0").split(",")
    table = Table(name, MetaData(), comment=",".join([first, *reversed(others)]))
    with project.engine.begin() as connection:
        connection.execute(SetTableComment(table))
    assert comment_of(project, name) == table.comment
    assert project.is_up_to_date()


@everywhere
def test_columns_come_and_go_with_the_data_kept(project: Project) -> None:
    models = project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    name = f"{project.name}_welcome"
    with Session(project.engine) as session, session.begin():
        session.add(models.Welcome(user_id=1, address="ada@example.com"))
    added = WELCOME + "    locale: Mapped[str | None] = mapped_column(String(10))\n"
    project.write_models(added)
    upgrade, downgrade = project.revision().split("def downgrade")
    has_comment = bool(project.engine.dialect.supports_comments)
    if has_comment:
        assert upgrade.index("op.add_column(") < upgrade.index("op.alter_message_queue(")
        assert downgrade.index("op.alter_message_queue(") < downgrade.index("op.drop_column(")
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    assert columns_of(project, name)[-1] == "locale"
    if has_comment:
        streamed = QueueOptions.from_comment(comment_of(project, name)).message_cols
        assert streamed is not None
        assert streamed[-1] == "locale"
    project.write_models(WELCOME)
    upgrade, downgrade = project.revision().split("def downgrade")
    if has_comment:
        assert upgrade.index("op.alter_message_queue(") < upgrade.index("op.drop_column(")
        assert downgrade.index("op.add_column(") < downgrade.index("op.alter_message_queue(")
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    project.alembic("downgrade", "-1")
    assert "locale" not in columns_of(project, name)
    models = project.write_models(WELCOME)
    with Session(project.engine) as session:
        assert session.scalars(select(models.Welcome.address)).all() == ["ada@example.com"]


@everywhere
def test_a_missing_index_comes_back(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    table = f"{project.name}_welcome"
    name = "poller_idx" if project.engine.dialect.name != "sqlite" else f"{table}_poller_idx"
    with project.engine.begin() as connection:
        Operations(MigrationContext.configure(connection)).drop_index(name, table)
    assert f"op.create_index('{name}', '{table}'" in project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()


OUTBOX = """
class Outbox(Base):
    __tablename__ = "{name}_outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(String(255), index=True)
"""

OUTBOX_QUEUE = """
class Outbox(MessageQueueMixin, Base):
    __tablename__ = "{name}_outbox"
    __queue__ = QueueOptions(ack_wait=30, layout="{layout}")
    address: Mapped[str] = mapped_column(String(255), index=True)
    locale: Mapped[str] = mapped_column(String(10), server_default="en")
"""


@pytest.mark.parametrize("project", ["sqlite", *WITH_COMMENTS], indirect=True)
@pytest.mark.parametrize(("layout", "rows"), [("portable", "dead"), ("minimal", "due")])
def test_an_existing_table_becomes_a_queue_and_back(
    project: Project, layout: str, rows: str
) -> None:
    plain = project.write_models(OUTBOX)
    project.revision()
    project.alembic("upgrade", "head")
    with Session(project.engine) as session, session.begin():
        session.add_all([plain.Outbox(address="ada@example.com"), plain.Outbox(address="bob@x")])
    queue = project.write_models(OUTBOX_QUEUE.replace("{layout}", layout))
    script = project.revision()
    assert "op.convert_to_message_queue(" in script
    assert "existing_rows='dead'" in script
    project.edit_last(lambda code: code.replace("existing_rows='dead'", f"existing_rows='{rows}'"))
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session, session.begin():
        stats = queue.Outbox.stats(session)
        assert (stats.dead, stats.ready) == ((2, 0) if rows == "dead" else (0, 2))
        queue.Outbox.requeue(session)
        session.add(queue.Outbox(address="new@example.com", locale="de"))
    with Session(project.engine) as session:
        assert queue.Outbox.stats(session).ready == 3
        assert {m.id for m in session.scalars(select(queue.Outbox))} >= {1, 2}
    project.alembic("downgrade", "-1")
    plain = project.write_models(OUTBOX)
    with Session(project.engine) as session, session.begin():
        assert len(session.scalars(select(plain.Outbox)).all()) == 3
        session.add(plain.Outbox(address="after"))
    assert columns_of(project, f"{project.name}_outbox") == ["id", "address"]


CLASSIC = """
class Job(MessageQueueMixin, Base):
    __tablename__ = "{name}_job"
    __queue__ = QueueOptions(layout="classic")
    body: Mapped[str] = mapped_column(String(255))
"""


PORTABLE = CLASSIC.replace("classic", "portable")
MINIMAL = CLASSIC.replace("classic", "minimal")


@pytest.mark.parametrize("project", ["sqlite", "mysql", "mariadb"], indirect=True)
def test_a_classic_queue_becomes_portable_and_back(project: Project) -> None:
    models = project.write_models(CLASSIC)
    project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session, session.begin():
        session.add(models.Job(body="kept"))
    models = project.write_models(PORTABLE)
    assert "existing_layout='classic'" in project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session:
        [job] = session.scalars(select(models.Job))
        assert (job.body, job.priority) == ("kept", 50)
    project.alembic("downgrade", "-1")
    models = project.write_models(CLASSIC)
    with Session(project.engine) as session:
        assert session.scalars(select(models.Job.body)).all() == ["kept"]
    assert columns_of(project, f"{project.name}_job") == list(models.Job.__table__.c.keys())


RAW = """
Table(
    "{name}_raw", Base.metadata, Column("id", BigInteger, primary_key=True),
    comment="vitess_message,vt_ack_wait=1,vt_purge_after=1,vt_batch_size=1,vt_cache_size=1,"
    "vt_poller_interval=1",
)
"""


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        pytest.param(PORTABLE, CLASSIC, "portable layout", id="priority goes"),
        pytest.param(PORTABLE, MINIMAL, "portable layout", id="another key"),
        pytest.param(
            OUTBOX.replace("id: Mapped[int]", "code: Mapped[int]"),
            OUTBOX_QUEUE.replace("{layout}", "portable"),
            "primary key is \\(code\\)",
            id="no id",
        ),
        pytest.param(
            OUTBOX + "    epoch: Mapped[int]\n",
            OUTBOX_QUEUE.replace("{layout}", "portable"),
            "columns epoch have names",
            id="a name is taken",
        ),
        pytest.param(
            OUTBOX,
            OUTBOX_QUEUE.replace("{layout}", "classic"),
            "not the classic",
            id="classic from a table",
        ),
        pytest.param(
            "", RAW, "lacks the columns priority, epoch, time_next, time_acked", id="no mixin"
        ),
    ],
)
def test_what_no_migration_can_do_is_refused_when_it_is_generated(
    project: Project, before: str, after: str, reason: str
) -> None:
    project.write_models(before)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(after)
    with pytest.raises(CommandFailed, match=reason):
        project.revision()


@with_comments
def test_a_queue_that_becomes_an_ordinary_table_loses_its_comment_first(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(
        'Table("{name}_welcome", Base.metadata, Column("time_scheduled", BigInteger, '
        'primary_key=True, autoincrement=False), Column("id", BigInteger, primary_key=True))\n'
    )
    upgrade, downgrade = project.revision().split("def downgrade")
    assert upgrade.index("op.drop_table_comment(") < upgrade.index("op.drop_column(")
    assert downgrade.rindex("op.create_table_comment(") > downgrade.rindex("op.add_column(")


@pytest.mark.parametrize("project", ["mysql", "mariadb", "vtgate"], indirect=True)
def test_migrations_offline_write_sql_that_does_the_same(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.write_models(WELCOME)
    project.run_sql(project.alembic("upgrade", "head", "--sql"))
    assert project.is_up_to_date()
    project.write_models(WELCOME.replace("ack_wait=30", "ack_wait=45"))
    project.revision()
    last = project.heads()
    project.run_sql(project.alembic("upgrade", f"{last[1]}:{last[0]}", "--sql"))
    assert project.is_up_to_date()
    project.run_sql(project.alembic("downgrade", f"{last[0]}:{last[1]}", "--sql"))
    project.run_sql(project.alembic("downgrade", f"{last[1]}:base", "--sql"))
    assert not inspect(project.engine).has_table(f"{project.name}_welcome")


def test_migrations_of_sqlite_work_offline_too(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    sql = project.alembic("upgrade", "head", "--sql")
    project.run_sql(sql)
    assert "ALTER VSCHEMA" not in sql
    assert project.is_up_to_date()


@pytest.mark.parametrize("project", ["mysql"], indirect=True)
def test_sql_for_a_sharded_keyspace_is_asked_for(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    table = f"`{project.name}_welcome`"
    adding = f"ALTER VSCHEMA ON {table} ADD VINDEX `hash` (`user_id`) USING `hash`;"
    assert "ALTER VSCHEMA" not in project.alembic("upgrade", "head", "--sql")
    assert adding in project.alembic("-x", "vitess=sharded", "upgrade", "head", "--sql")
    [head] = project.heads()
    sql = project.alembic("-x", "vitess=sharded", "downgrade", f"{head}:base", "--sql")
    assert f"ALTER VSCHEMA DROP TABLE {table};" in sql


def test_operations_on_queues_stand_outside_of_batches(project: Project) -> None:
    env = project.folder / "migrations" / "env.py"
    configured = env.read_text().replace(
        "context.configure(", "context.configure(render_as_batch=True,"
    )
    env.write_text(configured)
    project.write_models(OUTBOX)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(OUTBOX_QUEUE.replace("{layout}", "portable"))
    script = project.revision()
    assert script.index("batch_op.add_column(") < script.index("    op.convert_to_message_queue(")
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    assert columns_of(project, f"{project.name}_outbox") == ["id", "address"]


def test_alembic_finds_the_plugin_by_itself(project: Project) -> None:
    project.write_models(WELCOME)
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "revision", "--autogenerate", "-m", "first"],
        cwd=project.folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    [script] = (project.folder / "migrations" / "versions").glob("*.py")
    assert "op.create_message_queue(" in script.read_text()
    assert "poller_idx" not in done.stderr


@pytest.mark.parametrize("project", ["sqlite", *WITH_COMMENTS], indirect=True)
def test_an_ordinary_index_of_a_queues_name_is_compared_as_ever(project: Project) -> None:
    plain = 'Table("{name}_plain", Base.metadata, Column("n", Integer, primary_key=True), '
    project.write_models(plain + 'Column("id", Integer))\n')
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(plain + 'Column("id", Integer), Index("next_idx", "id"))\n')
    assert "op.create_index('next_idx'" in project.revision()


def test_a_conversion_of_sqlite_says_that_it_needs_a_database(project: Project) -> None:
    project.write_models(OUTBOX)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(OUTBOX_QUEUE.replace("{layout}", "portable"))
    project.revision()
    new, old = project.heads()
    with pytest.raises(CommandFailed, match="without --sql"):
        project.alembic("upgrade", f"{old}:{new}", "--sql")


PERIODIC = (
    WELCOME
    + """
from datetime import timedelta
from sqla_vitess_messages import Periodic

poll = Periodic("poll", timedelta(minutes=5), lambda tick: None)
"""
)


def test_the_table_of_last_ticks_is_created_once_and_never_dropped(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = project.write_models(PERIODIC)
    script = project.revision()
    assert "op.create_table('message_queue_ticks'," in script
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Scheduler(sessionmaker(project.engine), [models.poll]):
        pass
    # env.py may not import what is scheduled.
    monkeypatch.setattr(ticks, "_registry", ticks._Registry())
    project.write_models(WELCOME)
    assert project.is_up_to_date()


@pytest.mark.parametrize(("project", "is_created"), [("mysql", True), ("sharded", False)],
                         indirect=["project"])  # fmt: skip
def test_a_sharded_keyspace_needs_no_table_of_last_ticks(
    project: Project, is_created: bool
) -> None:
    project.write_models(PERIODIC)
    assert ("'message_queue_ticks'" in project.revision()) == is_created
