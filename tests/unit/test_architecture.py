"""The structure of the packages: docs/explanation/architecture.md describes it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = ROOT / "pyproject.toml"
PACKAGES = (ROOT / "sqla_vitess_messages", ROOT / "alembic_ext" / "sqla_vitess_alembic")

CONTRACTS = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]

KNOWS_DIALECTS = {"sqla_vitess_messages/vitess/server.py"}
"""The modules that may depend on the name of a dialect or a driver."""


@pytest.mark.parametrize("contract", [contract["id"] for contract in CONTRACTS])
def test_imports_keep_the_contract(contract: str) -> None:
    # In a process of its own, because import-linter disables the loggers of all other modules.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--contract", contract, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of each module that isn't generated."""
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if not path.stem.endswith("_pb2"):
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def depends_on_dialect(node: ast.AST) -> bool:
    """Return whether a node is ``dialect.name`` or ``dialect.driver`` of any dialect."""
    if not isinstance(node, ast.Attribute) or node.attr not in ("name", "driver"):
        return False
    owner = node.value
    return "dialect" in (getattr(owner, "id", None), getattr(owner, "attr", None))


def declares_public_names(node: ast.stmt) -> bool:
    """Return whether a statement assigns ``__all__``."""
    return isinstance(node, (ast.Assign, ast.AnnAssign)) and any(
        isinstance(child, ast.Name) and child.id == "__all__" for child in ast.walk(node)
    )


def test_one_module_knows_the_names_of_dialects_and_drivers() -> None:
    found = {path for path, tree in modules() if any(map(depends_on_dialect, ast.walk(tree)))}
    assert found == KNOWS_DIALECTS


def test_one_module_knows_the_loggers() -> None:
    """One of a user's filters that raises would end whatever logs to another one."""
    found = {path for path, tree in modules() if "getLogger" in ast.dump(tree)}
    assert found == {
        "sqla_vitess_messages/logs.py",
        "alembic_ext/sqla_vitess_alembic/online_ddl.py",  # Is Alembic's own.
    }


def test_every_module_declares_its_public_names() -> None:
    without = [
        path
        for path, tree in modules()
        if Path(path).stem != "__main__"
        and len(tree.body) > 1  # Not only a docstring.
        and not any(map(declares_public_names, tree.body))
    ]
    assert without == []
