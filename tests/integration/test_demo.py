"""The demo's counts are right on every kind of database, with a process killed on the way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.servers import server_url


@pytest.mark.parametrize("server", [None, "vtgate", "dev", "mysql", "mariadb"])
def test_the_demo_counts_right(server: str | None) -> None:
    command = [sys.executable, "-m", "sqla_vitess_messages", "demo", "--messages", "600"]
    if server is not None:
        command += ["--url", server_url(server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was killed" in done.stdout
    assert "effects applied exactly once" in done.stdout


def test_the_demo_tells_an_error_without_the_password() -> None:
    url = "mysql+pymysql://user:s3cret@127.0.0.1:1/nowhere"
    command = [sys.executable, "-m", "sqla_vitess_messages", "demo", "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Can't connect" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
