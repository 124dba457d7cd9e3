"""Migrations to what lets users change waiting messages: kept failures, and pauses."""

from __future__ import annotations

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from sqla_vitess_messages.table.pauses import PAUSES
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
