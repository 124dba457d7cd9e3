"""Run the examples of the README and the docs as tests."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.sybil import SybilCollection
from typer.testing import CliRunner

from sqla_vitess_messages.cli.app import app
from sqla_vitess_messages.table import ticks
from tests.servers import URLS, server_url

MIGRATIONS = "docs/how-to/migrate-with-alembic.md"
SHARDING = "docs/how-to/shard-a-queue.md"
GRPC = "docs/how-to/stream-over-grpc.md"
SHELL = "docs/how-to/operate.md"


@pytest.hookimpl(tryfirst=True)  # Before pytest-xdist reads the groups.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the examples of one document in one process: each builds on those before it."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


def _enter_empty_folder(namespace: dict[str, Any]) -> None:
    namespace["_folder"] = tempfile.TemporaryDirectory()
    ticks._registry = ticks._Registry()  # Periodic messages add a table to all metadata.
    namespace["_before"] = os.getcwd()  # noqa: PTH109
    os.chdir(namespace["_folder"].name)


def _leave_folder(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    sys.modules.pop("shop", None)
    namespace["_folder"].cleanup()
    for name in ("DATABASE_URL", "VTGATE_GRPC"):
        os.environ.pop(name, None)


def _enter_with_vitess(namespace: dict[str, Any], server: str) -> None:
    _enter_empty_folder(namespace)
    if URLS not in os.environ:
        pytest.skip("the database servers are only started for a run that includes tests/")
    os.environ["DATABASE_URL"] = server_url(server)
    os.environ["VTGATE_GRPC"] = server_url(f"{server} grpc")


def _write_file(example: Example) -> None:
    """Write a code block to the file that its first line names, or compare it with that file."""
    where, _, code = example.parsed.partition("\n")
    env = Path("migrations/env.py")
    if where == "# models.py":
        Path("models.py").write_text(code)
    elif where == "# in migrations/env.py":
        env.write_text(env.read_text().replace("target_metadata = None\n", code))
        ini = Path("alembic.ini")
        ini.write_text(
            ini.read_text().replace("driver://user:pass@localhost/dbname", "sqlite:///a")
        )
    elif where == "# in the middle of migrations/env.py":
        before, online, after = env.read_text().rpartition("        with context.begin_transaction")
        env.write_text(before + textwrap.indent(code, " " * 8) + "\n" + online + after)
        _run_commands("alembic upgrade head")
    else:
        assert where == "# the newest script"
        [script] = Path("migrations/versions").glob("*.py")
        assert code.replace('"', "'") in script.read_text().replace('"', "'")


def _run_shell(example: Example) -> None:
    _run_commands(example.parsed)


def _run_commands(lines: str) -> None:
    for line in lines.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        if command == "alembic":
            done = subprocess.run(  # noqa: S603  # The commands are in this project's docs.
                [sys.executable, "-m", "alembic", *arguments],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr


def _sybil(patterns: list[str], parsers: list[Any], **options: Any) -> Sybil:
    settings = {"setup": _enter_empty_folder, "teardown": _leave_folder, **options}
    return Sybil(parsers=parsers, patterns=patterns, **settings)


def _write_or_run_module(example: Example) -> None:
    """Write a code block to the module that its first line names, or else run it."""
    if example.parsed.startswith("# shop.py\n"):
        Path("shop.py").write_text(example.parsed)
        return
    done = subprocess.run(  # noqa: S603  # The code is in this project's docs.
        [sys.executable, "-c", example.parsed], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _run_command_line(example: Example) -> None:
    """Run the commands of this library, answer their questions with yes, and set variables."""
    for line in example.parsed.splitlines():
        command, *arguments = shlex.split(line, comments=True) or [""]
        if command == "export":
            name, _, value = arguments[0].partition("=")
            os.environ[name] = value
        elif command == "sqla-vitess-messages":
            done = CliRunner().invoke(app, arguments, input="y\n", catch_exceptions=False)
            assert done.exit_code == 0, line + done.output


_documents = SybilCollection(
    [
        _sybil(
            ["README.md", "docs/*.md", "docs/**/*.md"],
            [PythonCodeBlockParser()],
            excludes=[MIGRATIONS, SHARDING, GRPC, SHELL],
        ),
        *(
            _sybil(
                [path],
                [PythonCodeBlockParser()],
                setup=partial(_enter_with_vitess, server=server),
            )
            for path, server in ((SHARDING, "sharded"), (GRPC, "vtgate"))
        ),
        _sybil(
            [MIGRATIONS],
            [CodeBlockParser("python", _write_file), CodeBlockParser("sh", _run_shell)],
        ),
        _sybil(
            [SHELL],
            [
                CodeBlockParser("python", _write_or_run_module),
                CodeBlockParser("sh", _run_command_line),
            ],
        ),
    ]
)
pytest_collect_file = _documents.pytest()
