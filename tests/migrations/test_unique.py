"""Migrations of unique queues: autogenerate makes, changes and removes the key."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_vitess_messages import Subscriber
from sqla_vitess_messages.cli.check import check_queues
from tests.migrations.project import CommandFailed, Project, everywhere
from tests.migrations.test_autogenerate import columns_of

PLAIN = """
class Reindex(MessageQueueMixin, Base):
    __tablename__ = "{name}_reindex"
    __queue__ = QueueOptions(shard_by="tenant", vindex="hash")
    tenant: Mapped[int] = mapped_column(BigInteger)
    product: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String(50), server_default="none")
"""

UNIQUE = PLAIN.replace("vindex=", "unique_by=('tenant', 'product'), vindex=")
BY_TENANT = PLAIN.replace("vindex=", "unique_by='tenant', vindex=")

ORDINARY = """
class Reindex(Base):
    __tablename__ = "{name}_reindex"
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    tenant: Mapped[int] = mapped_column(BigInteger)
    product: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String(50), server_default="none")
"""


def upgrade(project: Project, models: str) -> Any:
    """Write models, and migrate the database to them."""
    module = project.write_models(models)
    project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    return module.Reindex


def problems_of(connection: Connection, model: Any) -> list[str]:
    """Return what the check finds wrong with the table."""
    found = check_queues(connection, [model.__table__])
    return [finding.problem for finding in found if finding.table == model.__tablename__]


def is_unique(project: Project, model: Any, *products: int) -> bool:
    """Return whether the database refuses messages of the same tenant, with these products."""
    project.wait_until_known(model)
    with Session(project.engine) as session:
        session.add_all(model(tenant=9, product=product) for product in products)
        try:
            session.flush()
        except IntegrityError:
            return True
        return False


def it_works(project: Project, model: Any) -> None:
    """Check that a message is enqueued, delivered, replaced while it is held, and acked."""
    project.wait_until_known(model)
    with Session(project.engine) as session, session.begin():
        session.execute(delete(model))
        assert model.enqueue(session, model(tenant=1, product=1), if_exists="skip")
    with Subscriber(model, project.engine) as subscriber:
        message = subscriber.get(timeout=15)
        new = model(tenant=1, product=1, reason="new")
        with Session(project.engine) as session, session.begin():
            assert model.enqueue(session, new, if_exists="replace")
        with Session(project.engine) as session, session.begin():
            message.ack(session)
        message = subscriber.get(timeout=15)
        assert message.reason == "new"
        with Session(project.engine) as session, session.begin():
            message.ack(session)


@everywhere
def test_a_unique_queue_is_created_and_dropped(project: Project) -> None:
    model = upgrade(project, UNIQUE)
    assert is_unique(project, model, 1, 1)
    assert not is_unique(project, model, 1, 2)
    it_works(project, model)
    with project.engine.connect() as connection:
        assert not problems_of(connection, model)
    script = project.write_models("") and project.revision()
    assert "unique_by=['tenant', 'product']," in script
    assert "sa.Column('revision'" not in script
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    assert is_unique(project, project.write_models(UNIQUE).Reindex, 1, 1)


@everywhere
def test_a_queue_becomes_unique_by_another_key_and_then_not(project: Project) -> None:
    model = upgrade(project, PLAIN)
    columns = columns_of(project, model.__tablename__)
    with Session(project.engine) as session, session.begin():
        session.add_all(model(tenant=n, product=n) for n in range(3))
    script_before = project.heads()
    model = upgrade(project, UNIQUE)
    assert is_unique(project, model, 1, 1)
    model = upgrade(project, BY_TENANT)
    assert is_unique(project, model, 1, 2)
    model = upgrade(project, PLAIN)
    assert not is_unique(project, model, 1, 1)
    assert columns_of(project, model.__tablename__) == columns
    project.alembic("downgrade", "-1")
    assert is_unique(project, project.write_models(BY_TENANT).Reindex, 1, 2)
    project.alembic("downgrade", "-1")
    model = project.write_models(UNIQUE).Reindex
    assert not is_unique(project, model, 1, 2)
    it_works(project, model)
    project.alembic("downgrade", script_before[0])
    assert not is_unique(project, project.write_models(PLAIN).Reindex, 1, 1)


@everywhere
def test_duplicates_are_refused_with_the_query_that_finds_them(project: Project) -> None:
    model = upgrade(project, PLAIN)
    with Session(project.engine) as session, session.begin():
        session.add_all(model(tenant=1, product=product) for product in (7, 7, 8))
    project.write_models(UNIQUE)
    project.revision()
    with pytest.raises(CommandFailed) as refused:
        project.alembic("upgrade", "head")
    error = " ".join(str(refused.value).split())
    assert "tenant=1, product=7" in error
    query = error[error.index("SELECT ") : error.index(". Ack or fail")]
    with project.engine.connect() as connection:
        assert [row[:2] for row in connection.execute(text(query))] == [(1, 7)]
    model = project.write_models(PLAIN).Reindex
    with Session(project.engine) as session, session.begin():
        session.scalars(select(model).where(model.product == 7)).first().fail(session)
    project.alembic("upgrade", "head")
    model = project.write_models(UNIQUE).Reindex
    assert project.is_up_to_date()
    project.wait_until_known(model)
    with Session(project.engine) as session, session.begin():
        assert model.requeue(session) == 0


@pytest.mark.parametrize("project", ["sqlite", "mysql", "mariadb", "vtgate"], indirect=True)
def test_an_ordinary_table_becomes_a_unique_queue_and_back(project: Project) -> None:
    model = upgrade(project, ORDINARY)
    with Session(project.engine) as session, session.begin():
        session.add_all(model(id=n, tenant=1, product=7) for n in (1, 2))
    project.write_models(UNIQUE)
    project.revision()
    project.edit_last(lambda code: code.replace("existing_rows='dead'", "existing_rows='due'"))
    with pytest.raises(CommandFailed, match="product=7"):
        project.alembic("upgrade", "head")
    project.edit_last(lambda code: code.replace("existing_rows='due'", "existing_rows='dead'"))
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    model = project.write_models(UNIQUE).Reindex
    project.wait_until_known(model)
    with Session(project.engine) as session:
        assert model.requeue(session) == 1
    it_works(project, model)
    project.alembic("downgrade", "-1")
    project.write_models(ORDINARY)
    project.alembic("stamp", "head")
    assert project.is_up_to_date()


@pytest.mark.parametrize("project", ["sqlite", "mysql", "vtgate"], indirect=True)
def test_the_check_command_misses_the_key(project: Project) -> None:
    upgrade(project, PLAIN)
    model = project.write_models(UNIQUE).Reindex
    with project.engine.connect() as connection:
        problems = problems_of(connection, model)
    assert any("revision, next_due, unsettled" in problem for problem in problems)
    assert any("unique_idx" in problem for problem in problems)
    upgrade(project, BY_TENANT)
    with project.engine.connect() as connection:
        [problem] = problems_of(connection, model)
    assert "(tenant, product, unsettled)" in problem
