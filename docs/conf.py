"""Sphinx configuration. ``make docs`` builds the site."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import sqla_vitess_alembic  # noqa: F401  # Registers the operations that are documented.
import typer.main
from docutils.nodes import Element
from sphinx.addnodes import desc_annotation, pending_xref
from sphinx.application import Sphinx
from sqlalchemy.exc import SAWarning
from typer.cli import get_docs_for_click

from sqla_vitess_messages.cli.app import app as command_line

warnings.filterwarnings("ignore", "Unmanaged access of declarative attribute", SAWarning)

project = "sqla-vitess-messages"
copyright = "2026, the sqla-vitess-messages authors"  # noqa: A001
release = importlib.metadata.version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_extra_path = ["llms.txt"]
myst_heading_anchors = 3
smartquotes_action = "qe"  # The dashes of options are two.
autodoc_member_order = "bysource"


PAGES = {
    "CHANGELOG": "changes",
    "CONTRIBUTING": "contributing",
    "examples/README": "examples",
    "reference": "reference/models",
}
"""The site's pages for files and folders that links on GitHub lead to."""


def _link_pages(_app: Sphinx, document: Element) -> None:
    for link in document.findall(pending_xref):
        target = link["reftarget"].removesuffix(".md")
        for name, page in PAGES.items():
            if target == name or target.endswith(f"/{name}"):
                link.attributes |= {"refdomain": "doc", "reftarget": page, "reftargetid": None}


def _add_commands(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the reference of the commands, which their own program has, to the page about them."""
    if docname != "reference/cli":
        return
    group: Any = typer.main.get_command(command_line)
    context = typer.Context(group, info_name=project)
    for command in group.commands.values():
        source[0] += get_docs_for_click(obj=command, ctx=context, indent=1, call_prefix=project)


def _hide_mapped_columns(_app: Sphinx, _domain: str, _type: str, content: Element) -> None:
    """Leave out the value of a mapped attribute, which says nothing: its type is what matters."""
    for annotation in list(content.parent.findall(desc_annotation)):
        if "MappedColumn object" in annotation.astext():
            annotation.parent.remove(annotation)


def setup(app: Sphinx) -> None:
    """Connect what this project adds; called by Sphinx."""
    app.connect("object-description-transform", _hide_mapped_columns)
    app.connect("source-read", _add_commands)
    app.connect("doctree-read", _link_pages)
