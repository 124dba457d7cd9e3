"""The tested versions are named in several files, which have to agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.vitess.downloads import MARIADB_ARTIFACT, VITESS_VERSIONS

ROOT = Path(__file__).parents[2]


def release(module: str) -> str:
    """Return the release of a version of Vitess's Go module: 24.0.4 of v0.24.4."""
    _zero, major, patch = module.split(".")
    return f"{major}.0.{patch}"


@pytest.mark.parametrize("version", VITESS_VERSIONS)
def test_each_version_of_vitess_is_tested_and_documented(version: str) -> None:
    documented = (ROOT / "docs/reference/versions.md").read_text()
    assert version in documented
    assert release(version) in documented
    assert version in (ROOT / "noxfile.py").read_text()
    if version != VITESS_VERSIONS[-1]:  # The newest is that of .ci/run.
        assert version in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_newest_vitess_is_that_of_compose() -> None:
    image = f"vitess/vttestserver:v{release(VITESS_VERSIONS[-1])}-mysql80"
    assert image in (ROOT / "compose.yml").read_text()


def test_each_version_of_python_is_tested_and_documented() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    documented = (ROOT / "docs/reference/versions.md").read_text()
    for version in classifiers:
        assert f'"{version}"' in (ROOT / "noxfile.py").read_text()
        assert version in documented
    assert MARIADB_ARTIFACT.rpartition(":")[2] in documented
