"""The documentation as a site: ``make docs``."""

from __future__ import annotations

import warnings

import sqla_vitess_alembic  # noqa: F401  # Gives Alembic its operations, which are documented.
from sqlalchemy.exc import SAWarning

warnings.filterwarnings("ignore", "Unmanaged access of declarative attribute", SAWarning)

project = "sqla-vitess-messages"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
suppress_warnings = ["myst.xref_missing"]  # Links to files of the repository that are no pages.
