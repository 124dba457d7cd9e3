"""Alembic's commands on queues: what autogenerate writes, and what it does to the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from tests.conftest import server_url
from tests.migrations.project import Project

SERVERS = ["sqlite", "mysql", "mariadb", "vtgate", "sharded"]

WELCOME = """
class Welcome(MessageQueueMixin, Base):
    __tablename__ = "{name}_welcome"
    __queue__ = QueueOptions(ack_wait=30, shard_by="user_id", vindex="hash")
    user_id: Mapped[int] = mapped_column(BigInteger)
    address: Mapped[str] = mapped_column(String(255))
"""


@pytest.fixture(params=SERVERS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    server = request.param
    url = f"sqlite:///{tmp_path}/app.db" if server == "sqlite" else server_url(server)
    made = Project(tmp_path / "project", url, "main" if server == "sharded" else None)
    yield made
    made.close()


def test_a_new_queue_is_created_dropped_and_created_again(project: Project) -> None:
    models = project.write_models(WELCOME)
    text = project.revision()
    print(text)
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session, session.begin():
        session.add(models.Welcome(user_id=1, address="ada@example.com"))
    project.alembic("downgrade", "base")
    assert not inspect(project.engine).has_table(f"{project.name}_welcome")
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.write_models("")
    text = project.revision()
    print(text)
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    project.write_models(WELCOME)
