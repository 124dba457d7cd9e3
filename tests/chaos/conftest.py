"""A cluster whose servers the tests kill."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.servers import server_url
from tools.vitess import Cluster, temporary


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A cluster that no other test uses."""
    server_url("vtgate-fast")
    if os.environ.get("VITESS_URL"):
        pytest.skip("VITESS_URL names a Vitess that this test can't kill")
    with temporary(Cluster) as started:
        yield started
