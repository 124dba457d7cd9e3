"""Which tests a run leaves out, because others test the same code, and which depend on Vitess.

A test that is marked ``matrix`` repeats another one on a further backend. One that is marked
``long`` repeats it on a further backend of the same kind, or takes long: ``.ci/run`` runs it too.
"""

from __future__ import annotations

import zlib
from collections import defaultdict

import pytest

from tests.backends import BACKENDS, Backend

__all__ = ["mark"]

ON_EACH_VITESS = (
    "chaos",
    "migrations",
    "test_change.py",
    "test_check.py",
    "test_dead.py",
    "test_delivery.py",
    "test_max_concurrency.py",
    "test_ordered.py",
    "test_pause.py",
    "test_shard_transactions.py",
    "test_sharding.py",
    "test_states.py",
    "test_subscriber.py",
)
"""The folders and modules whose tests depend on the version of Vitess."""

SAME_ON_EACH_BACKEND = (
    "test_change.py",
    "test_dead.py",
    "test_events.py",
    "test_failures.py",
    "test_fences.py",
    "test_grouped.py",
    "test_hooks.py",
    "test_inserts.py",
    "test_instances.py",
    "test_lost_connections.py",
    "test_mappings.py",
    "test_ordered.py",
    "test_own_settlements.py",
    "test_settlement_faults.py",
    "test_states.py",
    "test_topics.py",
    "test_unique.py",
    "test_unloadable_rows.py",
    "test_wait.py",
)
"""The modules whose tests are about code that all transports share.

Each test runs on SQLite and on one of :data:`SERVERS`. Which one, is dealt out by the test's name:
so each of them runs its share of every module.
"""

SERVERS = ("mysql", "vitess-sharded", "vitess-grpc-asyncio")

KINDS = (
    ("sqlite", "sqlite-asyncio"),
    ("mysql", "mariadb", "vitess-sharded"),
    ("vitess-stream", "vitess-grpc", "vitess-grpc-asyncio"),
)
"""The backends of each kind. A quick run runs each test on one of them, dealt out by its name."""

LONG = (
    "chaos",
    "test_ordered_state_machine.py",
    "test_state_machine.py",
    "test_unique_state_machine.py",
)
"""The folders and modules whose tests take long: servers are killed, or histories are random."""

LONG_ON_SERVERS = (
    "test_killed_schedulers.py",
    "test_large_messages.py",
    "test_ordered_killed.py",
    "test_schedule_command.py",
    "test_worker_command.py",
)
"""The modules whose tests take long. A quick run runs them on SQLite alone."""

NAMES = {backend.name for backend in BACKENDS}
"""The backends without those that differ from another one by the server only."""

SAME_AS = {
    "vitess": {"mysql", "vitess-sharded"},
    "vitess-asyncio": {"vitess-grpc-asyncio"},
}
"""Backends, and those that together run all of their code."""


def mark(items: list[pytest.Item]) -> list[pytest.Item]:
    """Mark what depends on the version of Vitess, and what repeats another test.

    :return: the tests to deselect in every run. They run with an asyncio driver, but neither
        receive nor schedule: to the rest that makes no difference.
    """
    backends_of = defaultdict(set)
    for item in items:
        if (backend := _backend_of(item)) is not None:
            backends_of[_name_without_backend(item)].add(backend.name)
    for item in items:
        if set(ON_EACH_VITESS).intersection(item.path.parts) and not _is_of_other_server(item):
            item.add_marker("vitess")
        if set(LONG).intersection(item.path.parts):
            item.add_marker("long")
        backend = _backend_of(item)
        if backend is not None:
            name = _name_without_backend(item)
            if _repeats(item, backend.name, name, backends_of[name]):
                item.add_marker("matrix")
            elif _takes_long(item, backend.name, name, backends_of[name]):
                item.add_marker("long")
    return [item for item in items if _is_only_synchronous(item)]


def _repeats(item: pytest.Item, backend: str, name: str, backends: set[str]) -> bool:
    if item.path.name in SAME_ON_EACH_BACKEND:
        dealt = _deal(name, SERVERS, backends)
        return dealt is not None and backend not in ("sqlite", dealt)
    return backend not in NAMES or (backend in SAME_AS and SAME_AS[backend] <= backends)


def _takes_long(item: pytest.Item, backend: str, name: str, backends: set[str]) -> bool:
    if item.path.name in SAME_ON_EACH_BACKEND:
        return False
    if item.path.name in LONG_ON_SERVERS and "sqlite" in backends:
        return backend != "sqlite"
    return any(backend in kind and backend != _deal(name, kind, backends) for kind in KINDS)


def _deal(name: str, among: tuple[str, ...], backends: set[str]) -> str | None:
    """Return one of those backends that a test has, always the same; None if it has none."""
    found = [backend for backend in among if backend in backends]
    return found[zlib.crc32(name.encode()) % len(found)] if found else None


def _name_without_backend(item: pytest.Item) -> str:
    """Return what a test has in common with the same test on other backends."""
    backend = _backend_of(item)
    return f"{item.path.name}::{item.name.replace(backend.name, '', 1) if backend else item.name}"


def _is_of_other_server(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    servers = [
        value.server or "sqlite" if isinstance(value, Backend) else value for value in values
    ]
    return any(server in ("sqlite", "mysql", "mariadb") for server in servers)


def _is_only_synchronous(item: pytest.Item) -> bool:
    backend = _backend_of(item)
    uses = getattr(item, "fixturenames", ())
    return bool(
        backend and backend.driver and not {"subscribe", "work", "schedulers"}.intersection(uses)
    )


def _backend_of(item: pytest.Item) -> Backend | None:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("backend")
    return backend if isinstance(backend, Backend) else None
