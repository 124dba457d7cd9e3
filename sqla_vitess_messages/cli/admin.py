"""The command ``admin``: the queues of a database in the browser."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..errors import InvalidArgument
from ..extras import needs_extra
from ..urls import parse_url
from .arguments import Target
from .targets import load

__all__ = ["admin"]


def admin(
    target: Target,
    url: Annotated[
        str, typer.Option(help="Database URL.", envvar="DATABASE_URL", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 for any free one.")
    ] = 8800,
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the password to ask for. Required unless the address is loopback."
        ),
    ] = None,
) -> None:
    """Show queues in the browser, with actions for their messages, until SIGTERM or SIGINT."""
    password = _read_password(host, password_file)
    engine = _make_engine(parse_url(url))
    app = _make_app(engine, load(target), password)
    _connect(engine)
    listener = _listen(host, port)
    _serve(app, listener)


def _read_password(host: str, file: Path | None) -> str | None:
    """Return the password to ask for.

    :raises InvalidArgument: when there is none and others can reach the address.
    """
    if file is None:
        if _is_loopback(host):
            return None
        raise InvalidArgument(
            f"--host {host}: others can reach this address; give a --password-file too"
        )
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"--password-file {file}: can't be read: {error}") from error
    if not password:
        raise InvalidArgument(f"--password-file {file}: is empty")
    return password


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _make_engine(url: URL) -> Engine | AsyncEngine:
    return create_async_engine(url) if url.get_dialect().is_async else create_engine(url)


def _connect(engine: Engine | AsyncEngine) -> None:
    """Check that the database can be reached, before anybody opens a page."""
    if isinstance(engine, Engine):
        engine.connect().close()
        return

    async def connect() -> None:
        async with engine.connect():
            pass
        await engine.dispose()  # Its connections belong to this event loop.

    asyncio.run(connect())


def _make_app(engine: Engine | AsyncEngine, base: Any, password: str | None) -> Any:
    from ..contrib.sqladmin.server import make_app

    return make_app(engine, base, password)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    :raises InvalidArgument: when the address is none of this computer's, or in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidArgument(f"--host {host} --port {port}: {error.strerror}") from error


def _serve(app: Any, listener: socket.socket) -> None:
    with needs_extra("admin", "uvicorn"):
        import uvicorn

    host, port, *_ = listener.getsockname()
    shown_host = f"[{host}]" if ":" in host else host
    typer.echo(f"Queues at http://{shown_host}:{port}/ (Ctrl+C ends it)")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    server.run(sockets=[listener])
