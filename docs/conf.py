"""Sphinx configuration. ``make docs`` builds the site."""

from __future__ import annotations

import warnings

import sqla_vitess_alembic  # noqa: F401  # Registers the operations that are documented.
from sqlalchemy.exc import SAWarning

warnings.filterwarnings("ignore", "Unmanaged access of declarative attribute", SAWarning)

project = "sqla-vitess-messages"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
suppress_warnings = ["myst.xref_missing"]  # Links to files that aren't pages of the site.
