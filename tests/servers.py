"""Where the database servers of this run are; the controlling process has started them."""

from __future__ import annotations

import json
import os

import pytest

URLS = "SQLA_VITESS_MESSAGES_TEST_URLS"
"""The variable that hands the addresses on to the workers of a parallel run."""


def server_url(name: str) -> str:
    """Return the URL of a running database server, or skip the test.

    :param name: such as ``vtgate``; with `` grpc`` behind it: ``host:port`` for that.
    """
    urls: dict[str, str] = json.loads(os.environ[URLS])
    if name not in urls:
        pytest.skip(f"no {name} on this machine")
    return urls[name]
