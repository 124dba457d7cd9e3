"""The command ``sqla-vitess-messages``, also run by ``python -m sqla_vitess_messages``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; exit with a hint when the extra ``cli`` is missing."""
    try:
        from .cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("The command needs an extra: pip install 'sqla-vitess-messages[cli]'")
    app()


if __name__ == "__main__":
    main()
