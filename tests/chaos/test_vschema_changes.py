"""Simultaneous changes of the vschema, which would harm other tests on the same cluster."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, create_engine, text

from sqla_vitess_messages.vitess.vschema import AddTable, AddVindex, alter_vschema, vindexes_of
from tools.vitess import Cluster
from tools.vitess.cluster import SHARDED

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(240)]


def test_changes_of_the_vschema_at_the_same_time_are_all_kept(cluster: Cluster) -> None:
    """vtgate writes other keyspaces as it has them in memory: unguarded, some of 20 were lost."""
    sharded = create_engine(cluster.url(SHARDED))
    main = create_engine(cluster.url(gate="vtgate-fast"))
    names = [f"both_{secrets.token_hex(6)}" for _ in range(20)]
    together = threading.Barrier(2)

    def change(engine: Engine, statements: list[Any]) -> None:
        with engine.connect() as connection:
            for statement in statements:
                together.wait(20)
                alter_vschema(connection, statement)

    with ThreadPoolExecutor(2) as pool:
        vindexes = [AddVindex(name, ["id"], "hash") for name in names]
        both = [
            pool.submit(change, sharded, vindexes),
            pool.submit(change, main, [AddTable(name) for name in names]),
        ]
        for changed in both:
            changed.result()
    with sharded.connect() as connection, main.connect() as in_main:
        for name in names:
            assert len(vindexes_of(connection, Table(name, MetaData()))) == 1
        assert set(in_main.scalars(text("SHOW VSCHEMA TABLES"))) >= set(names)
    main.dispose()
    sharded.dispose()
