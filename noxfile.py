"""Test every supported version of Python with every supported version of SQLAlchemy."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv|virtualenv"


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """Run the unit tests, the integration tests on SQLite, and the examples of the docs."""
    session.install("--editable", ".[dev]", f"sqlalchemy=={sqlalchemy}.*")
    session.run("pytest", "-n", "2", "-k", "unit or sqlite or README or docs", *session.posargs)


@nox.session(python="3.13")
def vitess(session: nox.Session) -> None:
    """Run all tests, on real database servers too."""
    session.install("--editable", ".[dev]")
    session.run("pytest", "-n", "3", "--dist", "loadgroup", *session.posargs)
