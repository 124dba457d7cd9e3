"""A project with migrations, on a database of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migrations.project import Project
from tests.servers import server_url


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """A project on SQLite, or on the server that is the parameter."""
    server = getattr(request, "param", "sqlite")
    url = f"sqlite:///{tmp_path}/app.db" if server == "sqlite" else server_url(server)
    made = Project(tmp_path / "project", url, "main" if server == "sharded" else None)
    yield made
    made.close()
