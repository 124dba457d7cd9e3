"""The command ``sqla-vitess-messages``, also run by ``python -m sqla_vitess_messages``."""

from __future__ import annotations

import sys

from .extras import needs_extra


def main() -> None:
    """Run the command; exit with a hint when the extra ``cli`` is missing."""
    try:
        with needs_extra("cli", "rich", "typer"):
            import rich  # noqa: F401
            import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    from .cli.app import app

    app()


if __name__ == "__main__":
    main()
