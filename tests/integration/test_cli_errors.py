"""Every mistake on the command line ends with an exit code and one line of text."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import create_engine, literal_column, update
from sqlalchemy.orm import DeclarativeBase
from typer.testing import CliRunner

from sqla_vitess_messages import MessageQueueMixin, QueueOptions
from sqla_vitess_messages.cli.app import app
from sqla_vitess_messages.cli.enqueue import IfExists as Choices
from sqla_vitess_messages.rows.enqueue_unique import IfExists
from tests.command import Commands, commands_on

SECRET = "hunter2secret"
UNREACHABLE = f"mysql+pymysql://user:{SECRET}@127.0.0.1:1/main"

COMMANDS = {
    "stats": [],
    "list": [],
    "show": ["1"],
    "requeue": ["1"],
    "run-now": ["1"],
    "cancel": ["1"],
    "reschedule": ["--in", "60", "1"],
    "purge-dead": ["--older-than", "7d"],
    "pause": [],
    "resume": [],
    "enqueue": ['{"user_id": 7}'],
    "check": [],
}
"""The commands on a database, and the arguments that they need."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Commands]:
    url = f"sqlite:///{tmp_path}/app.db"
    engine = create_engine(url)
    with commands_on(engine, url, is_sharded=False) as commands:
        yield commands
    engine.dispose()


def plain(text: str) -> str:
    """Return the text of an error, as typer or this library shows it, in one line."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unreachable_database_is_reported_without_its_password(
    shop: Commands, command: str
) -> None:
    shop.url = UNREACHABLE
    output = shop.run(command, "Mail", *COMMANDS[command], code=2)
    assert "Error: " in output
    assert "Can't connect" in output
    assert SECRET not in output


@pytest.mark.parametrize(
    "url",
    [
        f"user:{SECRET}@host",
        f"mysql+pymysql://user@host:{SECRET}/main",
        f"nothing://user:{SECRET}@host/main",
        f"mysql+nothing://user:{SECRET}@host/main",
        "",
    ],
)
@pytest.mark.parametrize("command", ["stats", "cancel", "check"])
def test_a_malformed_url_is_reported_without_its_password(
    shop: Commands, command: str, url: str
) -> None:
    shop.url = url
    output = shop.run(command, "Mail", *COMMANDS[command], code=2)
    assert "Error" in output
    assert SECRET not in output


def test_a_missing_table_is_reported(shop: Commands) -> None:
    shop.url = "sqlite://"
    assert "Error: no such table" in shop.run("stats", "Mail", code=2)
    assert "the database has no such table" in shop.run("check", "Mail", code=1)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_target_that_is_none_is_reported(shop: Commands, command: str) -> None:
    output = shop.run(command, "number", *COMMANDS[command], code=2)
    assert "3 is no declarative base, no MetaData and no model" in output
    assert "has no 'Nothing'" in shop.run(command, "Nothing", *COMMANDS[command], code=2)


@pytest.mark.parametrize("command", ["requeue", "run-now", "cancel", "reschedule"])
def test_what_to_change_has_to_be_named_in_one_way(shop: Commands, command: str) -> None:
    more = ["--in", "60"] if command == "reschedule" else []
    expected = "give ids of messages, or --all, and not both"
    assert expected in shop.run(command, "Base", *more, code=2)
    assert expected in shop.run(command, "Base", "1", "--all", *more, code=2)
    assert "go with --all" in shop.run(command, "Base", "1", "--state", "dead", *more, code=2)
    unknown = shop.run(command, "Base", "--all", "--state", "asleep", *more, code=2)
    assert "--state 'asleep': expected one of" in unknown
    acked = shop.run(command, "Base", "--all", "--state", "acked", *more, code=2)
    assert "--state 'acked': expected one of" in acked
    assert "Invalid value for" in plain(shop.run(command, "Base", "x", *more, code=2))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("user_id", "--where 'user_id': expected COLUMN=VALUE"),
        ("nothing=1", "no queue has nothing; there is"),
        ("user_id=x", "--where user_id='x': the column is of type int; expected an integer"),
        ("user_id=1.5", "--where user_id=1.5: the column is of type int"),
        ("due=tomorrow", "expected a time in ISO 8601"),
        ("color=#f00", "the column is of type Color; expected one of RED, BLUE"),
        ("amount=cheap", "the column is of type Decimal"),
        ("scan=?", "expected text in base64"),
        ("is_paid=yes", "expected true or false"),
        ("weight=1e999", "weight='1e999': the column is of type float; expected a number"),
        ("weight=NaN", "weight='NaN': the column is of type float; expected a number"),
        ("size=huge", "expected one of small, big"),
        ("user_id=9223372036854775808", "expected an integer of 64 bits"),
        ("id=99999999999999999999999999", "expected an integer of 64 bits"),
        ("due=2026-01-31T12:00:00+02:00", "without an offset"),
    ],
)
def test_a_wrong_condition_is_refused(shop: Commands, condition: str, message: str) -> None:
    assert message in shop.run("list", "Bill", "--where", condition, code=2)
    refused = shop.run("cancel", "Bill", "--all", "--yes", "--where", condition, code=2)
    assert message in refused


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{", "'{': is no JSON"),
        ("[1]", "expected an object"),
        ('{"user_id": NaN}', "NaN is no finite number"),
        ('{"user_id": 1, "weight": 1e999}', "1e999 is no finite number"),
        ('{"user_id": 1, "more": {"a": [-Infinity]}}', "-Infinity is no finite number"),
        ('{"user_id": 1000000000000000000000000}', "expected an integer of 64 bits"),
        ('{"user_id": 1, "weight": "NaN"}', "expected a number"),
        ('{"user_id": 1, "size": "huge"}', "expected one of small, big"),
        ('{"user_id": 1, "due": "2026-01-31T12:00:00+02:00"}', "without an offset"),
        ('{"user_id": 1, "at": "12:00:00Z"}', "such as 12:00:00, without an offset"),
        ("{}", "Bill needs user_id too"),
        ('{"user_id": 1, "nothing": 2}', "Bill has no payload 'nothing': there is user_id, amount"),
        ('{"user_id": 1, "id": 2}', "Bill has no payload 'id': id is the queue's own"),
        ('{"user_id": "7"}', "user_id='7': the column is of type int; expected an integer"),
        ('{"user_id": true}', "user_id=True: the column is of type int"),
        ('{"user_id": null}', "user_id: null, and the column must have a value"),
        ('{"user_id": 1, "amount": 1.5}', "amount=1.5: the column is of type Decimal"),
        ('{"user_id": 1, "amount": "NaN"}', "amount='NaN': the column is of type Decimal"),
        ('{"user_id": 1, "due": "soon"}', "due='soon': the column is of type datetime"),
        ('{"user_id": 1, "color": "#f00"}', "expected one of RED, BLUE"),
        ('{"user_id": 1, "scan": "ä"}', "expected text in base64"),
        ('{"user_id": 1, "number": "1"}', "expected a UUID"),
    ],
)
def test_a_payload_that_does_not_suit_its_columns_is_refused(
    shop: Commands, payload: str, message: str
) -> None:
    assert message in shop.run("enqueue", "Bill", payload, code=2)
    assert shop.json("list", "Base") == []


def test_if_exists_has_the_values_of_the_library() -> None:
    assert [choice.value for choice in Choices] == list(get_args(IfExists))


def test_a_message_is_for_one_queue(shop: Commands) -> None:
    output = shop.run("enqueue", "Base", '{"user_id": 7}', code=2)
    assert "has 2 queues; name one: " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["purge-dead", "Base", "--older-than", "a week"], "--older-than 'a week': expected"),
        (["purge-dead", "Base"], "Missing option '--older-than'"),
        (["reschedule", "Base", "--in", "-1", "--all"], "--in '-1': expected seconds"),
        (["reschedule", "Base", "--all"], "Missing option '--in'"),
        (["list", "Base", "--limit", "0"], "Invalid value for '--limit'"),
        (
            ["list", "Base", "--state", "asleep"],
            "--state 'asleep': no queue has it; there is ready",
        ),
        (["list", "Bill", "--state", "retrying"], "--state 'retrying': no queue has it"),
        (["stats", "Base", "--watch", "0"], "--watch '0': expected at least 0.1 seconds"),
        (["stats", "Base", "--watch", "--json"], "--json prints one document"),
        (
            ["enqueue", "Mail", "{}", "--priority", "300"],
            "Invalid value for '--priority'",
        ),
        (["nothing", "Base"], "No such command 'nothing'"),
    ],
)
def test_other_mistakes_are_reported(shop: Commands, arguments: list[str], message: str) -> None:
    command, target, *more = arguments
    assert message in plain(shop.run(command, target, *more, code=2))


def test_a_database_has_to_be_named(shop: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    line = ["stats", shop.target("Base")]
    done = CliRunner().invoke(app, line)
    assert (done.exit_code, "Missing option '--url'" in plain(done.output)) == (2, True)
    assert CliRunner().invoke(app, line, env={"DATABASE_URL": shop.url}).exit_code == 0


def test_a_url_with_an_asyncio_driver_is_used(shop: Commands) -> None:
    shop.url = shop.url.replace("sqlite:", "sqlite+aiosqlite:")
    assert len(shop.json("stats", "Base")) == 2


def test_a_row_that_cannot_be_loaded_does_not_hide_the_others(shop: Commands) -> None:
    broken, fine = shop.bill(user_id=1), shop.bill(user_id=2)
    shop.enqueue(broken, fine)
    table = shop.bill.__table__
    breaking = update(table).where(table.c.user_id == 1)
    with shop.engine.begin() as connection:
        connection.execute(breaking.values(color=literal_column("'GREEN'")))
    found = {one["id"]: one for one in shop.json("list", "Bill")}
    assert "GREEN" in found[str(broken.id)]["error"]
    assert found[str(fine.id)]["payload"]["user_id"] == 2
    assert "can't be loaded" in shop.run("list", "Bill")
    assert "can't be loaded" in shop.run("show", "Bill", str(broken.id))


@pytest.mark.parametrize("message_id", ["0", "99999999999999999999999999"])
def test_an_id_that_no_message_can_have_matches_nothing(shop: Commands, message_id: str) -> None:
    assert f"there is no message {message_id}" in shop.run("show", "Base", message_id, code=1)
    for command in ("requeue", "run-now", "cancel"):
        output = shop.run(command, "Base", message_id, code=1)
        assert f"has this id: {message_id}" in output


def test_what_a_terminal_cannot_show_is_shown_as_its_code(shop: Commands) -> None:
    payload = {"lines": ["\ud800", "\x1b[2J", "\x9b"], "infinite": float("-inf")}
    bill = shop.bill(user_id=1, more=payload, weight=float("inf"))
    mail = shop.mail(user_id=1, text="\x1b[2J\tä\r\nb")
    shop.enqueue(bill, mail)
    for command in (["list", "Base"], ["show", "Base", str(bill.id)]):
        shown = shop.run(*command)
        assert not set(shown) & {"\x1b", "\x9b"}
        assert "\\ud800" in shown
        assert "\\x9b" in shown
    shown = shop.run("show", "Mail", str(mail.id))
    assert "\\x1b[2J" in shown
    assert "ä\\x0d" in shown
    text = shop.run("list", "Bill", "--json")
    assert text.isascii()
    [found] = json.loads(text, parse_constant=pytest.fail)
    assert found["payload"]["more"] == payload | {"infinite": "-Infinity"}
    assert found["payload"]["weight"] == "Infinity"


def test_dead_messages_of_unknown_age_are_purged_only_with_all(shop: Commands) -> None:
    class Base(DeclarativeBase):
        pass

    class Old(MessageQueueMixin, Base):
        __tablename__ = "old"

    class Ping(MessageQueueMixin, Base):
        __tablename__ = "ping"
        __queue__ = QueueOptions(layout="minimal")

    Base.metadata.create_all(shop.engine)
    shop.module.Pings, shop.module.Ping = Base, Ping  # type: ignore[attr-defined]
    messages = [Old(), Ping()]
    shop.enqueue(*messages)
    shop.fail(*messages)
    output = shop.run("purge-dead", "Ping", "--older-than", "7d", code=2)
    assert "--older-than '7d': ping: the minimal layout doesn't keep" in output
    assert shop.run("purge-dead", "Pings", "--older-than", "0.001s") == "1 message deleted\n"
    assert list(shop.states("Pings").values()) == ["dead"]
    assert shop.run("purge-dead", "Pings", "--older-than", "0") == "1 message deleted\n"
    assert shop.states("Pings") == {}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sqla_vitess_messages", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=110,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def", "SyntaxError"),
        ("import nothing_here", "No module named 'nothing_here'"),
        (f"raise RuntimeError('mysql://user:{SECRET}@host')", "RuntimeError: 'mysql://user:***@"),
    ],
)
@pytest.mark.parametrize("command", ["stats", "worker"])
def test_a_module_that_cannot_be_imported_is_no_traceback(
    tmp_path: Path, command: str, code: str, message: str
) -> None:
    (tmp_path / "models.py").write_text(code)
    done = run(tmp_path, command, "models:Base", DATABASE_URL="sqlite://")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line
    assert SECRET not in line


def test_a_broken_url_in_the_environment_is_no_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, "stats", "sqlalchemy:nothing", DATABASE_URL=f"user:{SECRET}@host")
    assert (done.returncode, done.stdout) == (2, "")
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    version = importlib.metadata.version("sqla-vitess-messages")
    assert (done.returncode, done.stdout) == (0, f"{version}\n")


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("sqla_vitess_messages.__main__", "typer", "cli"),
        ("sqla_vitess_messages.contrib.prometheus", "prometheus_client", "prometheus"),
        ("sqla_vitess_messages.contrib.opentelemetry", "opentelemetry", "opentelemetry"),
        ("sqla_vitess_messages.contrib.sqladmin.server", "sqladmin", "admin"),
        ("sqla_vitess_messages.vitess.grpc.dbapi", "grpc", "grpc"),
        ("sqla_vitess_alembic", "alembic", "alembic"),
        ("async_engine", "aiosqlite", "async"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    tmp_path: Path, module: str, missing: str, extra: str
) -> None:
    (tmp_path / "async_engine.py").write_text(
        "from sqla_vitess_messages.aio.engine import dedicated_async_engine\n"
        "dedicated_async_engine('sqlite+aiosqlite:///app.db')\n"
    )
    code = f"""
import runpy, sys
sys.modules[{missing!r}] = None  # As if it were not installed.
try:
    runpy.run_module({module!r}, run_name="__main__")
except ModuleNotFoundError as error:
    print(error, file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    [line] = done.stderr.splitlines()
    assert line.endswith(f"pip install 'sqla-vitess-messages[{extra}]'")
