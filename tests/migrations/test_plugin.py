"""The entry point by which Alembic loads the plugin, as each version of Alembic loads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pytest
from alembic.runtime.plugins import Plugin

NAME = "alembic.autogenerate.message_queues"


def from_1_18_0_to_1_20_0(loaded: Any) -> Iterable[ModuleType]:
    """Return the modules of which those versions of Alembic call ``setup``."""
    return list(loaded)


def from_1_20_1(loaded: Any) -> Iterable[ModuleType]:
    """Return the modules; later versions warn of an entry point that isn't a module."""
    assert isinstance(loaded, ModuleType)
    return [loaded]


@pytest.mark.parametrize("modules_of", [from_1_18_0_to_1_20_0, from_1_20_1])
def test_every_version_of_alembic_can_load_the_entry_point(
    modules_of: Callable[[Any], Iterable[ModuleType]],
) -> None:
    [entry_point] = entry_points(group="alembic.plugins", name=NAME)
    [module] = modules_of(entry_point.load())
    plugin = Plugin("tests.message_queues")
    try:
        module.setup(plugin)
    finally:
        plugin.remove()
    assert plugin.autogenerate_comparators._registry


@pytest.mark.parametrize("first", ["alembic", "sqla_vitess_alembic", "sqla_vitess_messages"])
def test_alembic_has_the_plugin_whatever_is_imported_first(first: str) -> None:
    code = f"import {first}, alembic\nprint(*alembic.runtime.plugins._all_plugins)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    assert NAME in done.stdout.split()
