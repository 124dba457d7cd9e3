"""Autogenerate orders a queue, by other columns, and ends its order."""

from __future__ import annotations

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from sqla_vitess_messages import InvalidArgument, Subscriber
from sqla_vitess_messages.cli.check import check_queues
from sqla_vitess_messages.table.order import Order, existing_order
from sqla_vitess_messages.vitess.vschema import AddVindex, alter_vschema, wait_until_routable
from tests.migrations.project import CommandFailed, Project, everywhere

EVENT = """
class Event(MessageQueueMixin, Base):
    __tablename__ = "{name}_event"
    __queue__ = QueueOptions(shard_by="user_id", vindex="hash")
    user_id: Mapped[int] = mapped_column(BigInteger)
    place: Mapped[str] = mapped_column(String(20))
"""
ORDERED = EVENT.replace('"hash")', '"hash", ordered_by="user_id")')
HALTING = EVENT.replace('"hash")', '"hash", ordered_by=("user_id", "place"), halt_on_dead=True)')


def order_in(project: Project) -> Order | None:
    return existing_order(inspect(project.engine), f"{project.name}_event", None)


@everywhere
def test_a_queue_is_ordered_by_other_columns_and_no_more_and_back(project: Project) -> None:
    models = project.write_models(EVENT)
    project.revision()
    project.alembic("upgrade", "head")
    with Session(project.engine) as session, session.begin():
        session.add_all(models.Event(user_id=1, place="a") for _ in range(2))
    name = f"{project.name}_event"
    steps = [
        (ORDERED, Order(("user_id",), False), "ordered_by=['user_id']"),
        (
            HALTING,
            Order(("user_id", "place"), True),
            "ordered_by=['user_id', 'place'], halt_on_dead=True, existing_ordered_by=['user_id']",
        ),
        (EVENT, None, "existing_ordered_by=['user_id', 'place'], existing_halt_on_dead=True"),
    ]
    for source, order, arguments in steps:
        models = project.write_models(source)
        with project.engine.connect() as connection:
            problems = check_queues(connection, [models.Event.__table__])
            assert (order is None) or any(f.table == name and f.is_error for f in problems)
        script = project.revision()
        assert f"op.alter_message_order('{name}', {arguments})" in script
        assert script.count("op.") == 2
        project.alembic("upgrade", "head")
        assert order_in(project) == order
        assert project.is_up_to_date()
        with project.engine.connect() as connection:
            problems = check_queues(connection, [models.Event.__table__])
            assert not [finding for finding in problems if finding.table == name]
    expected = [order for _source, order, _arguments in steps]
    for order in (expected[1], expected[0], None):
        project.alembic("downgrade", "-1")
        assert order_in(project) == order
    project.alembic("upgrade", "+1")
    models = project.write_models(ORDERED)
    with Session(project.engine) as session, session.begin():
        session.add(models.Event(user_id=1, place="last"))
    received = []
    with Subscriber(models.Event, project.url) as subscriber:
        for _ in range(3):
            message = subscriber.get(20)
            assert message is not None
            assert subscriber.get(0.1) is None
            received.append(message.place)
            with Session(project.engine) as session, session.begin():
                message.ack(session)
    assert received == ["a", "a", "last"]


@everywhere
def test_a_new_ordered_queue_is_created_dropped_and_created_again(project: Project) -> None:
    project.write_models(HALTING)
    script = project.revision()
    assert "ordered_by=['user_id', 'place']" in script
    assert "halt_on_dead=True" in script
    assert "seq" not in script
    project.alembic("upgrade", "head")
    assert order_in(project) == Order(("user_id", "place"), True)
    assert project.is_up_to_date()
    project.write_models("")
    assert "ordered_by=['user_id', 'place']" in project.revision()
    project.alembic("upgrade", "head")
    project.alembic("downgrade", "-1")
    models = project.write_models(HALTING)
    project.alembic("stamp", "head")
    assert project.is_up_to_date()
    with Session(project.engine) as session, session.begin():
        session.add(models.Event(user_id=1, place="a"))
    with Session(project.engine) as session:
        assert session.scalar(select(models.Event.seq)) > 0


@everywhere
def test_an_ordinary_table_becomes_an_ordered_queue_and_back(project: Project) -> None:
    plain = EVENT.replace("MessageQueueMixin, ", "").replace("place:", "id: Mapped[int] = "
        "mapped_column(BigInteger, primary_key=True, autoincrement=False)\n    place:")  # fmt: skip
    lines = [line for line in plain.splitlines() if "__queue__" not in line]
    models = project.write_models("\n".join(lines))
    project.revision()
    project.alembic("upgrade", "head")
    if project.url.endswith("/sharded"):
        with project.engine.connect() as connection:
            alter_vschema(connection, AddVindex(f"{project.name}_event", ["user_id"], "hash"))
            wait_until_routable(connection, models.Event.__table__)
    project.write_models(ORDERED)
    script = project.revision()
    upgrade, downgrade = script.split("def downgrade")
    assert upgrade.index("convert_to_message_queue") < upgrade.index("alter_message_order")
    assert downgrade.index("alter_message_order") < downgrade.index("convert_from_message_queue")
    project.alembic("upgrade", "head")
    assert order_in(project) == Order(("user_id",), False)
    assert project.is_up_to_date()
    project.alembic("downgrade", "-1")
    assert order_in(project) is None
    columns = [column["name"] for column in inspect(project.engine).get_columns(
        f"{project.name}_event")]  # fmt: skip
    assert sorted(columns) == ["id", "place", "user_id"]


def test_a_payload_column_named_seq_is_one(project: Project) -> None:
    project.write_models(EVENT)
    project.revision()
    project.alembic("upgrade", "head")
    project.write_models(EVENT + "    seq: Mapped[int | None]\n")
    assert "sa.Column('seq', sa.Integer(), nullable=True)" in project.revision()
    project.alembic("upgrade", "head")
    assert project.is_up_to_date()


def test_an_operation_without_any_order_is_refused(project: Project) -> None:
    project.write_models("")
    project.alembic("revision", "-m", "nothing")
    project.edit_last(lambda code: code.replace("pass", "op.alter_message_order('event')", 1))
    with pytest.raises((InvalidArgument, CommandFailed), match="ordered_by"):
        project.alembic("upgrade", "head")
