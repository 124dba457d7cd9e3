"""Name the extra to install, when a library that only some users need is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(extra: str, *modules: str) -> Iterator[None]:
    """Import libraries that belong to an extra.

    :param extra: its name in ``pip install 'sqla-vitess-messages[…]'``.
    :param modules: the modules that it installs.
    :raises ModuleNotFoundError: when a module is missing, with that command if it is one of these.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in modules:
            raise
        raise ModuleNotFoundError(
            f"there is no module {error.name!r}: pip install 'sqla-vitess-messages[{extra}]'",
            name=error.name,
        ) from error
