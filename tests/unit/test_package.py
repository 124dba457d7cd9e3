"""What is published: the description on a package index."""

from __future__ import annotations

import re
from importlib.metadata import metadata


def test_no_link_of_the_description_needs_the_other_files() -> None:
    description = metadata("sqla-vitess-messages").json["description"]
    assert isinstance(description, str)
    assert "## A first message" in description
    links = re.findall(r"\]\((.*?)\)", description, re.DOTALL)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
