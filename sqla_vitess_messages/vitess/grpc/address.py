"""The address of a vtgate and the credentials for it.

Independent of gRPC, which need not be installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import ArgumentError

if TYPE_CHECKING:
    from grpc import ChannelCredentials

__all__ = ["Address"]


@dataclass(frozen=True)
class Address:
    """The address of a vtgate and the credentials for it.

    :param target: ``host:port``.
    :param secure: whether to use TLS.
    :param ca: path of the certificates to trust; default: gRPC's own.
    :param cert: path of the client's certificate, where vtgate requires one.
    :param key: path of the certificate's private key.
    :param user: for vtgate's ``--grpc-auth-mode static``.
    :raises ArgumentError: when the files given for TLS are incomplete, or would not be used.
    """

    target: str
    secure: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        files = {"ssl_ca": self.ca, "ssl_cert": self.cert, "ssl_key": self.key}
        given = [name for name, path in files.items() if path is not None]
        if empty := [name for name in given if not files[name]]:
            raise ArgumentError(f"vitess+grpc: {', '.join(empty)}: expected the path of a file")
        if given and not self.secure:
            raise ArgumentError(
                f"vitess+grpc: {', '.join(given)} are for TLS, which ssl=false turns off; leave "
                "ssl=false out, or the files"
            )
        if (self.cert is None) != (self.key is None):
            raise ArgumentError(
                "vitess+grpc: ssl_cert and ssl_key are a client's certificate and its private "
                "key; give both, or neither"
            )

    def credentials(self) -> ChannelCredentials | None:
        """Return the credentials of a TLS channel; None without TLS.

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
        """Return the metadata that authenticates each call; empty without a password."""
        if self.password is None:
            return ()
        return (("username", self.user or ""), ("password", self.password))
