"""Online DDL, on a cluster where no other test drops tables meanwhile: Vitess would give it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from tests.migrations.project import CommandFailed, Project
from tests.migrations.test_autogenerate import WELCOME
from tests.migrations.test_unique import PLAIN, UNIQUE, is_unique, it_works
from tools.vitess import Cluster

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(240)]


def test_online_ddl_is_waited_for_and_its_errors_are_shown(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path / "project", cluster.url())
    models = project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    with Session(project.engine) as session, session.begin():
        session.add_all([models.Welcome(user_id=n, address=str(n)) for n in range(50)])
    _use_online_ddl(project)
    project.write_models(WELCOME + "    locale: Mapped[str | None] = mapped_column(String(10))\n")
    project.revision()
    project.alembic("upgrade", "head")
    logged = capsys.readouterr().err
    assert "online DDL" in logged
    assert "main/0: complete, 100 %" in logged
    assert project.is_up_to_date()
    done = _migrations(project)
    assert len(done) == 2
    assert {row["migration_status"] for row in done} == {"complete"}
    project.alembic("revision", "-m", "wrong")
    table = f"{project.name}_welcome"
    project.edit_last(
        lambda code: code.replace(
            "    pass", f"    op.execute('ALTER TABLE {table} DROP COLUMN nonsense')", 1
        )
    )
    with pytest.raises(CommandFailed, match=r"failed on shard main/0.*nonsense"):
        project.alembic("upgrade", "head")
    with Session(project.engine) as session:
        assert len(session.scalars(select(models.Welcome.id)).all()) == 50


def test_a_queue_becomes_unique_and_plain_again(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", cluster.url())
    project.write_models(PLAIN)
    project.revision()
    project.alembic("upgrade", "head")
    _use_online_ddl(project)
    model = project.write_models(UNIQUE).Reindex
    project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    assert is_unique(project, model, 1, 1)
    it_works(project, model)
    project.alembic("downgrade", "-1")
    assert not is_unique(project, project.write_models(PLAIN).Reindex, 1, 1)


def _use_online_ddl(project: Project) -> None:
    env = project.folder / "migrations" / "env.py"
    before = "        with context.begin_transaction():\n            context.run_migrations()\n"
    assert before in env.read_text()
    using = '        use_ddl_strategy(connection, "vitess")\n'
    env.write_text(
        "from sqla_vitess_alembic import use_ddl_strategy\n"
        + env.read_text().replace(before, using + before)
    )


def _migrations(project: Project) -> list[Any]:
    engine = create_engine(project.url)
    with engine.connect() as connection:
        rows = connection.execute(text("SHOW VITESS_MIGRATIONS")).mappings().all()
    engine.dispose()
    return [row for row in rows if row["mysql_table"] == f"{project.name}_welcome"]
