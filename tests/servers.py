"""The URLs of this run's database servers, which the controlling process has started."""

from __future__ import annotations

import json
import os

import pytest

URLS = "SQLA_VITESS_MESSAGES_TEST_URLS"
"""The environment variable that passes the URLs to the workers of a parallel run."""


def server_url(name: str) -> str:
    """Return the URL of a running database server, or skip the test.

    :param name: such as ``vtgate``; followed by `` grpc``, its ``host:port`` for gRPC.
    """
    urls: dict[str, str] = json.loads(os.environ[URLS])
    if name not in urls:
        pytest.skip(f"no {name} on this machine")
    return urls[name]
