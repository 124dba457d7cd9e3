"""The demo's counts are right on every kind of database, although a process is killed."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from sqla_vitess_messages import TransportName
from sqla_vitess_messages.cli.app import app
from sqla_vitess_messages.cli.working import Transport
from tests.servers import server_url


@pytest.mark.parametrize(
    "server", [None, *(pytest.param(name, marks=pytest.mark.long) for name in ("vtgate", "mysql"))]
)
def test_the_counts_are_right(server: str | None) -> None:
    command = [sys.executable, "-m", "sqla_vitess_messages", "demo", "--messages", "600"]
    if server is not None:
        command += ["--url", server_url(server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was killed" in done.stdout
    assert "effects applied exactly once" in done.stdout


def test_an_error_is_shown_without_the_password() -> None:
    url = "mysql+pymysql://user:s3cret@127.0.0.1:1/nowhere"
    command = [sys.executable, "-m", "sqla_vitess_messages", "demo", "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Can't connect" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_a_transport_that_does_not_exist_is_refused() -> None:
    assert [transport.value for transport in Transport] == list(get_args(TransportName))
    done = CliRunner().invoke(app, ["demo", "--transport", "pigeon"])
    assert done.exit_code == 2
    output = " ".join(done.output.replace("│", " ").split())
    assert "'pigeon' is not one of 'auto', 'pull', 'stream', 'grpc'" in output


def test_a_transport_that_the_database_does_not_support_is_refused() -> None:
    done = CliRunner().invoke(app, ["demo", "--transport", "grpc"])
    assert done.exit_code == 2
    assert "Error: transport='grpc': give vtgate's address" in done.output
