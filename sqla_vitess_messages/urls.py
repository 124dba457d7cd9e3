"""Database URLs."""

from __future__ import annotations

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["parse_url"]


def parse_url(url: str | URL) -> URL:
    """Return a URL.

    :raises sqlalchemy.exc.ArgumentError: when it can't be parsed.
    """
    try:
        return make_url(url)
    except ValueError:
        # Not chained: its text is what takes the place of the port, such as a password.
        raise ArgumentError("the port of a URL is no number") from None
