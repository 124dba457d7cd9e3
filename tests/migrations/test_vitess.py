"""Features of Vitess in migrations: the vschema, sequences, online DDL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from sqla_vitess_messages import InvalidQueue, Subscriber
from sqla_vitess_messages.vitess.vschema import reserve_ids, vindexes_of, wait_until_routable
from tests.backends import enqueue, eventually
from tests.migrations.project import CommandFailed, Project
from tests.migrations.test_autogenerate import CLASSIC, PORTABLE, WELCOME
from tests.servers import server_url
from tools.vitess import VtCombo


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    server = getattr(request, "param", "sharded")
    schema = "main" if server == "sharded" else None
    made = Project(tmp_path / "project", server_url(server), schema)
    yield made
    made.close()


VSCHEMA = """\
    op.create_sequence('{name}_ids', start=500, keyspace='main')
    op.execute('CREATE TABLE main.{name}_lookup (address VARCHAR(255) PRIMARY KEY, '
               'keyspace_id VARBINARY(128))')
    op.add_vschema_table('{name}_lookup', keyspace='main')
    op.create_vindex('{name}_lookup', 'consistent_lookup_unique', {
        'table': 'main.{name}_lookup', 'from': 'address', 'to': 'keyspace_id',
        'owner': '{name}_welcome'})
    op.add_vindex('{name}_welcome', ['address'], '{name}_lookup')


def downgrade() -> None:
    op.remove_vindex('{name}_welcome', '{name}_lookup')
    op.drop_vindex('{name}_lookup')
    op.drop_vschema_table('{name}_lookup', keyspace='main')
    op.execute('DROP TABLE main.{name}_lookup')
    op.drop_sequence('{name}_ids', keyspace='main')
"""


def test_a_migration_makes_sequences_and_lookup_vindexes(project: Project) -> None:
    models = project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    project.alembic("revision", "-m", "vschema")
    project.edit_last(
        lambda code: (
            code[: code.index("def upgrade")]
            + "def upgrade() -> None:\n"
            + VSCHEMA.replace("{name}", project.name)
        )
    )
    project.alembic("upgrade", "head")
    table = models.Welcome.__table__
    with project.engine.connect() as connection:
        eventually(lambda: [v.columns for v in vindexes_of(connection, table)]
                   == [("user_id",), ("address",)])  # fmt: skip
    [id_] = reserve_ids(project.engine, f"main.{project.name}_ids", 1)
    assert id_ == 500
    with Session(project.engine) as session, session.begin():
        session.add(models.Welcome(id=id_, user_id=1, address="ada@example.com"))
    with Session(project.engine) as session:
        found = session.scalars(select(models.Welcome).filter_by(address="ada@example.com"))
        assert found.one().id == 500
    main = create_engine(server_url("vtgate"))
    assert inspect(main).has_table(f"{project.name}_ids")
    main.dispose()
    project.alembic("downgrade", "-1")
    with project.engine.connect() as connection:
        assert [v.columns for v in vindexes_of(connection, table)] == [("user_id",)]


@pytest.mark.parametrize("project", ["vtgate"], indirect=True)
def test_a_sequence_is_no_table_that_a_model_lacks(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.edit_last(
        lambda code: code.replace(
            "    op.create_message_queue(",
            f"    op.create_sequence('{project.name}_ids')\n    op.create_message_queue(",
        ).replace(
            "    op.drop_message_queue(",
            f"    op.drop_sequence('{project.name}_ids')\n    op.drop_message_queue(",
        )
    )
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    project.alembic("downgrade", "base")


@pytest.mark.parametrize("project", ["mysql"], indirect=True)
def test_operations_on_the_vschema_do_nothing_elsewhere(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.edit_last(
        lambda code: code.replace(
            "    op.create_message_queue(",
            "    op.create_sequence('ids')\n    op.create_vindex('a', 'hash')\n"
            "    op.create_message_queue(",
        )
    )
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()


def test_a_queue_that_the_vschema_does_not_know_gets_its_vindex(project: Project) -> None:
    unknown = WELCOME.replace(', shard_by="user_id", vindex="hash"', "").replace(", index=True", "")
    project.write_models(unknown)
    project.revision()
    project.alembic("upgrade", "head")
    name = f"{project.name}_welcome"
    models = project.write_models(unknown.replace("ack_wait=30", 'shard_by="user_id", '
                                                  'vindex="hash"'))  # fmt: skip
    with project.engine.connect() as connection:
        assert vindexes_of(connection, models.Welcome.__table__) == []
    # vtgate learns of such a table from the tablets, after a second.
    eventually(lambda: inspect(project.engine).has_table(name))
    script = project.revision()
    assert f"op.add_vindex('{name}', ['user_id'], 'hash')" in script
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()


def test_another_vindex_than_the_tables_is_refused(project: Project) -> None:
    project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(WELCOME.replace('vindex="hash"', 'vindex="xxhash"'))
    with pytest.raises(
        CommandFailed, match=r"sharded by hash\(user_id\) and the model says xxhash"
    ):
        project.revision()


@pytest.mark.parametrize("project", ["vtgate"], indirect=True)
def test_a_column_is_added_under_a_running_stream(project: Project) -> None:
    """Subscribers that run the old code continue, as they must while a release is rolled out."""
    models = project.write_models(WELCOME)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(WELCOME + "    locale: Mapped[str | None] = mapped_column(String(10))\n")
    project.revision()
    url = server_url("vtgate-fast")

    def send(address: str) -> None:
        with Session(project.engine) as session, session.begin():
            session.add(models.Welcome(user_id=1, address=address))

    def receive(address: str) -> None:
        # On a busy machine a message can be both streamed, and pulled as one that the stream lost.
        while (message := subscriber.get(20)).address != address:
            assert message.address in received
        subscriber.ack(message).result(20)
        received.add(address)

    received: set[str] = set()
    with Subscriber(models.Welcome, url, transport="stream") as subscriber:
        send("before")
        receive("before")
        project.alembic("upgrade", "head")
        for number in range(20):
            send(str(number))
            receive(str(number))


RENAME = """\
    streamed = ["id", "epoch", "time_scheduled", "time_next", "time_created", "time_acked",
                "priority", "user_id"]
    op.alter_message_queue("{name}_welcome", message_cols=streamed, ack_wait=30)
    op.alter_column("{name}_welcome", "address", new_column_name="email",
                    existing_type=sa.String(255), existing_nullable=False)
    op.alter_message_queue("{name}_welcome", message_cols=[*streamed, "email"], ack_wait=30)


def downgrade() -> None:
    pass
"""


@pytest.mark.parametrize("project", ["vtgate", "mysql"], indirect=True)
def test_a_column_is_renamed_as_the_recipe_says(project: Project) -> None:
    models = project.write_models(before := WELCOME.replace(", index=True", ""))
    project.revision()
    project.alembic("upgrade", "head")
    enqueue(project.engine, models.Welcome(user_id=1, address="ada@example.com"))
    models = project.write_models(before.replace("address:", "email:"))
    project.alembic("revision", "-m", "rename")
    project.edit_last(
        lambda code: (
            code[: code.index("def upgrade")]
            + "def upgrade() -> None:\n"
            + RENAME.replace("{name}", project.name)
        )
    )
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    with Subscriber(models.Welcome, project.url) as subscriber:
        assert subscriber.get(20).email == "ada@example.com"


def test_a_classic_queue_on_a_new_vitess_is_mended(
    isolated_vitess: VtCombo, tmp_path: Path
) -> None:
    """Such a queue stops schema reloading on its tablet; the migration ends that."""
    project = Project(tmp_path / "project", isolated_vitess.url())
    models = project.write_models("")
    project.revision()
    project.alembic("upgrade", "head")
    models = project.write_models(CLASSIC)
    table = models.Job.__table__
    with project.engine.begin() as connection:
        connection.execute(CreateTable(table))
    project.write_models(PORTABLE)
    assert "existing_layout='classic'" in project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()
    models = project.write_models(PORTABLE)
    with project.engine.connect() as connection:
        wait_until_routable(connection, models.Job.__table__)
    enqueue(project.engine, models.Job(body="delivered"))
    with Subscriber(models.Job, project.url) as subscriber:
        assert subscriber.get(20).body == "delivered"
    with pytest.raises(InvalidQueue, match="classic layout has no priority"):
        project.alembic("downgrade", "-1")
    project.close()
