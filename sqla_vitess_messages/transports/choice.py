"""How messages come from the database: the ``transport`` argument of a subscriber.

.. code-block:: python

    Subscriber(Mail, url)                                               # "auto"
    Subscriber(Mail, url, transport=Pull(poll_interval=0.02, shards=["-80"]))
    Subscriber(Mail, url, transport=Grpc("vtgate:15991"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, get_args

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .. import clock
from ..errors import InvalidArgument, InvalidArgumentType
from ..shown import shown
from .shards import check_shards

__all__ = ["Grpc", "Pull", "Stream", "TransportChoice", "TransportName", "check_choice"]

TransportName = Literal["auto", "pull", "stream", "grpc"]
"""The name of a transport with its defaults."""


@dataclass(frozen=True)
class Pull:
    """Lease messages by polling the table: on every database, and exactly as many as fit.

    :param poll_interval: seconds, or a timedelta, between two polls of an idle queue, at most.
        Right after work it polls every few milliseconds. A commit of the same process makes it poll
        at once; on SQLite in a file, so does one of any process, and no other polls are needed.
    :param shards: in a sharded keyspace of Vitess, the shards to receive from: names or key ranges
        such as ``["-80"]``. Default: all.
    :raises InvalidArgument: when an argument has a value that can't work.
    :raises InvalidArgumentType: when an argument has a type that can't work.
    """

    poll_interval: float | timedelta = 0.1
    shards: Sequence[str] | None = None

    def __post_init__(self) -> None:
        clock.to_seconds(self.poll_interval, "poll_interval", minimum=0.001)
        check_shards(self.shards)


@dataclass(frozen=True)
class Stream:
    """Have Vitess push messages over the MySQL protocol, by PyMySQL."""


@dataclass(frozen=True)
class Grpc:
    """Have Vitess push messages over vtgate's gRPC protocol: the lowest latency.

    :param address: vtgate's ``host:port`` for gRPC, or a URL such as
        ``vitess+grpc://user:password@host:15991/keyspace?ssl_ca=ca.pem``. What it leaves out, such
        as user and keyspace, is as in the subscriber's bind. Default: the bind is such a URL.
    :raises InvalidArgument: when the address has another form.
    """

    address: str | URL | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.address is not None:
            self.url()

    def url(self) -> URL:
        """Return the address as a URL.

        :raises InvalidArgument: when the address has another form.
        """
        url: URL | None = None
        if isinstance(self.address, URL):
            url = self.address
        elif isinstance(self.address, str):
            prefix = "" if "://" in self.address else "vitess+grpc://"
            try:
                url = make_url(prefix + self.address)
            except (ArgumentError, ValueError):
                url = None
        if url is None or url.drivername != "vitess+grpc" or not url.host:
            # Not shown: it may contain a password.
            raise InvalidArgument(
                "Grpc(address): expected vtgate's host:port, or a URL such as "
                "vitess+grpc://user@host:15991/keyspace"
            )
        return url


TransportChoice = TransportName | Pull | Stream | Grpc
"""The values of a subscriber's ``transport``."""

_BY_NAME: dict[str, Pull | Stream | Grpc] = {"pull": Pull(), "stream": Stream(), "grpc": Grpc()}


def check_choice(transport: TransportChoice) -> Pull | Stream | Grpc | None:
    """Return the transport that a name stands for; None for ``"auto"``.

    :raises InvalidArgument: for another name.
    :raises InvalidArgumentType: for another type.
    """
    if isinstance(transport, (Pull, Stream, Grpc)):
        return transport
    if not isinstance(transport, str):
        raise InvalidArgumentType(
            f"transport: expected one of {get_args(TransportName)}, or a Pull, Stream or Grpc, "
            f"not a {type(transport).__name__}"
        )
    if transport not in get_args(TransportName):
        raise InvalidArgument(
            f"transport={shown(transport)}: expected one of {get_args(TransportName)}, or a Pull, "
            "Stream or Grpc"
        )
    return _BY_NAME.get(transport)
