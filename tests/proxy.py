"""A TCP proxy in front of a server, which can stop to forward, as a network does."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

__all__ = ["Proxy"]


class Proxy:
    """Forwards connections to a server.

    :param address: the server's ``host:port``.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._server = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._pattern = b""
        self._matched = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """The proxy's own ``host:port``."""
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def stall(self) -> None:
        """Forward nothing more, on any connection."""
        self._flowing.clear()

    def drop(self) -> None:
        """Close every connection, as a server does that restarts, or to those that were idle."""
        dropped, self._sockets = self._sockets, []
        _close(*dropped)

    def refuse(self) -> None:
        """Close every connection, and each new one, as if there were no server."""
        self._refusing = True
        self.drop()

    def stall_after(self, pattern: bytes) -> None:
        """Stall when a client has sent this: the server gets it, and its answer is held back."""
        self._matched.clear()
        self._pattern = pattern

    def wait_until_stalled(self) -> None:
        """Wait until a client has sent the pattern."""
        assert self._matched.wait(20)

    def resume(self) -> None:
        """Forward what was held back, and everything from now on."""
        self._refusing = False
        self._flowing.set()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.resume()
        _close(self._listening, *self._sockets)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _address = self._listening.accept()
                if self._refusing:
                    client.close()
                    continue
                server = socket.create_connection(self._server)
                self._sockets += (client, server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(
                        target=self._forward, args=(source, target), daemon=True
                    ).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self._pattern and self._pattern in data:
                    self._pattern = b""
                    self._flowing.clear()
                    target.sendall(data)
                    self._matched.set()
                    continue
                self._flowing.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
