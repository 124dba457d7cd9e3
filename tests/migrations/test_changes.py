"""Migrations to what lets users change waiting messages: kept failures, and pauses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import Column, Integer, create_engine, func, inspect, select, table
from sqlalchemy.orm import Session

from sqla_vitess_messages.table.pauses import PAUSES
from sqla_vitess_messages.table.unique import UNIQUE_COLUMNS
from tests.migrations.project import Project, everywhere

QUEUE = """
class Mail(MessageQueueMixin, Base):
    __tablename__ = "{name}_mail"
    __queue__ = QueueOptions(shard_by="user_id", vindex="hash")
    user_id: Mapped[int] = mapped_column(BigInteger)
"""

KEEPS_FAILURES = "from sqla_vitess_messages.failures import MessageFailuresMixin\n" + QUEUE.replace(
    "Mail(", "Mail(MessageFailuresMixin, "
)

COLUMNS = [
    "id",
    "epoch",
    "time_scheduled",
    "time_next",
    "time_created",
    "time_acked",
    "priority",
]

PAUSABLE = QUEUE.replace('vindex="hash"', 'vindex="hash", pausable=True')


@everywhere
def test_a_queue_gets_the_columns_of_kept_failures_and_loses_them(project: Project) -> None:
    models = project.write_models(QUEUE)
    project.revision()
    project.alembic("upgrade", "head")
    with Session(project.engine) as session, session.begin():
        session.add(models.Mail(user_id=1))
    models = project.write_models(KEEPS_FAILURES)
    upgrade = project.revision().split("def downgrade")[0]
    assert upgrade.count("add_column(") == 3
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.wait_until_known(models.Mail)
    with Session(project.engine) as session, session.begin():
        [message] = session.scalars(
            models.Mail.__table__.select().with_only_columns(models.Mail.id)
        )
        assert models.Mail.run_now(session, [message]) == 1
        assert models.Mail.reschedule(session, models.Mail.failed_at.is_(None), deliver_in=5) == 1
    project.alembic("downgrade", "-1")
    project.write_models(QUEUE)
    assert {"failed_epoch", "time_failed"}.isdisjoint(
        column["name"] for column in inspect(project.engine).get_columns(f"{project.name}_mail")
    )


def test_a_queue_that_becomes_pausable_gets_the_table_of_pauses(project: Project) -> None:
    project.write_models(QUEUE)
    assert PAUSES not in project.revision()
    project.alembic("upgrade", "head")
    models = project.write_models(PAUSABLE)
    upgrade, downgrade = project.revision().split("def downgrade")
    assert upgrade.count("op.") == 1
    assert f"op.create_table('{PAUSES}'" in upgrade
    assert f"op.drop_table('{PAUSES}')" in downgrade
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session, session.begin():
        models.Mail.pause(session)
        assert models.Mail.is_paused(session)
    project.alembic("downgrade", "-1")
    assert not inspect(project.engine).has_table(PAUSES)


def test_a_copy_on_sqlite_keeps_indexes_triggers_and_rows_of_other_tables(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    made = (
        "CREATE UNIQUE INDEX one_active ON job (email) WHERE active = 1",
        "CREATE INDEX latest ON job (email DESC, lower(email))",
        "CREATE TRIGGER noted AFTER INSERT ON job BEGIN INSERT INTO log VALUES (NEW.id); END",
    )
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE log (job_id INTEGER)",
            "CREATE TABLE job (id INTEGER PRIMARY KEY, email VARCHAR(50) NOT NULL, active INTEGER)",
            "CREATE TABLE note (job_id INTEGER REFERENCES job (id) ON DELETE CASCADE)",
            "INSERT INTO job VALUES (1, 'a', 0), (2, 'a', 1)",
            "INSERT INTO note VALUES (1), (2)",
            *made,
        ):
            connection.exec_driver_sql(statement)

    def convert(pragma: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(pragma)
            operations: Any = Operations(MigrationContext.configure(connection))
            operations.convert_to_message_queue("job", message_cols=COLUMNS)
            connection.commit()

    with pytest.raises(CommandError, match=r"would delete what refers to it in 'note'.*=OFF"):
        convert("PRAGMA foreign_keys = ON")
    convert("PRAGMA foreign_keys = OFF")
    with engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        assert set(kept.scalars()) >= set(made)
        counts = [
            connection.scalar(select(func.count()).select_from(table(name)))
            for name in ("job", "note", "log")
        ]
        assert counts == [2, 2, 0]
    engine.dispose()


def test_a_change_of_the_layout_may_remove_the_key_as_well(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.create_message_queue(
            "mail",
            Column("user_id", Integer, nullable=False),
            layout="classic",
            unique_by=["user_id"],
        )
        operations.alter_message_queue(
            "mail",
            message_cols=COLUMNS,
            existing_layout="classic",
            existing_unique_by=["user_id"],
        )
        columns = {column["name"] for column in inspect(connection).get_columns("mail")}
        assert "user_id" in columns
        assert columns.isdisjoint(UNIQUE_COLUMNS)
    engine.dispose()
