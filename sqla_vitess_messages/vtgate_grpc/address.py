"""Where a vtgate is, and what it asks for. Apart from gRPC, which need not be installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpc import ChannelCredentials

__all__ = ["Address"]


@dataclass(frozen=True)
class Address:
    """Where a vtgate is, and what it asks for.

    :param target: ``host:port``.
    :param secure: speak TLS.
    :param ca: path of the certificates to trust; default: gRPC's own.
    :param cert: path of the client's certificate, where vtgate wants one.
    :param key: path of its key.
    :param user: for vtgate's ``--grpc_auth_mode static``.
    """

    target: str
    secure: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def credentials(self) -> ChannelCredentials | None:
        """Return what TLS needs; None without it.

        :raises OSError: for a file that can't be read.
        """
        if not self.secure:
            return None
        from grpc import ssl_channel_credentials

        ca, key, cert = (
            None if path is None else Path(path).read_bytes()
            for path in (self.ca, self.key, self.cert)
        )
        return ssl_channel_credentials(ca, key, cert)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what tells vtgate who calls."""
        if self.password is None:
            return ()
        return (("username", self.user or ""), ("password", self.password))
