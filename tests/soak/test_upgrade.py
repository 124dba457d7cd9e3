"""A cluster is upgraded under load, one server after the other; run by ``make test-upgrade``.

From each version to the next, in the order that Vitess asks for: vtctld, the tablets, the vtgates.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

import pytest

from tests.chaos.load import Load
from tools.vitess import Cluster, install, temporary
from tools.vitess.cluster import GATES, MAIN, SHARDED, TABLETS
from tools.vitess.downloads import VITESS_VERSIONS

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

KINDS = [("auto", MAIN), ("stream", MAIN), ("grpc", MAIN), ("auto", SHARDED)]


def upgrade(cluster: Cluster, version: str, loads: list[Load]) -> None:
    """Upgrade each server, and wait after each until messages are enqueued and settled again."""
    replica = next(tablet for tablet in TABLETS if tablet.keyspace == MAIN
                   and tablet != cluster.primary())  # fmt: skip
    former = cluster.primary()
    single = [tablet.name for tablet in TABLETS if tablet.keyspace == SHARDED]
    cluster.upgrade("vtctld", version)
    cluster.upgrade(replica.name, version)
    cluster.reparent(replica)
    for name in (former.name, *single, *GATES):
        started = time.monotonic()
        cluster.upgrade(name, version)
        for load in loads:
            load.wait_for_progress()
        print(f"{version} {name}: all goes on after {time.monotonic() - started:.1f} s")


def test_an_upgrade_under_load_loses_nothing_and_does_nothing_twice() -> None:
    for version in VITESS_VERSIONS:
        install(version)
    oldest, *newer = VITESS_VERSIONS
    with temporary(partial(Cluster, version=oldest)) as cluster, ExitStack() as stack:
        loads = [stack.enter_context(Load(cluster, *kind)) for kind in KINDS]
        for version in newer:
            upgrade(cluster, version, loads)
        for (transport, keyspace), load in zip(KINDS, loads, strict=True):
            load.check()
            print(
                f"{transport} {keyspace}: {len(load.committed)} messages, "
                f"longest time between two commits of the producer {load.longest_outage:.1f} s, "
                f"between two deliveries {load.longest_gap:.1f} s"
            )
