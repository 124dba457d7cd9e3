"""Test every supported version of Python, SQLAlchemy, Vitess, and the other dependencies."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv|virtualenv"

ALL = ("-m", "not soak and not matrix", "--dist", "loadgroup")
"""As in .ci/run."""

WITHOUT_SERVERS = ("-k", "unit or sqlite or README or docs")
"""The unit tests, the integration tests on SQLite, and the examples of the docs."""


@nox.session(python=["3.11", "3.12", "3.13", "3.14", "3.15"])
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """Run what needs no server, with the newest dependencies."""
    session.install("--editable", ".[dev]", f"sqlalchemy=={sqlalchemy}.*")
    session.run("pytest", "-n", "4", *ALL, *WITHOUT_SERVERS, *session.posargs)


@nox.session(python="3.11", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run all tests with the oldest dependencies that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "--editable", ".[dev]")
    session.run("pytest", "-n", "8", *ALL, *session.posargs)


@nox.session(python="3.15")
def servers(session: nox.Session) -> None:
    """Run all tests, on real database servers too."""
    session.install("--editable", ".[dev]")
    session.run("pytest", "-n", "8", *ALL, *session.posargs)


@nox.session(python="3.15")
@nox.parametrize("version", ["v0.22.1", "v0.23.3", "v0.24.4"])
def vitess(session: nox.Session, version: str) -> None:
    """Run the tests that depend on the version of Vitess, as ``make test-vitess`` does."""
    session.install("--editable", ".[dev]")
    session.run(
        "pytest", "-n", "4", "--dist", "loadgroup", "-m", "vitess", *session.posargs,
        env={"VITESS_VERSION": version},
    )  # fmt: skip
