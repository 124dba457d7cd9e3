"""URLs of vtgate's gRPC protocol: which ones mean TLS, and which ones are refused."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from sqla_vitess_messages.vitess.grpc.address import Address
from sqla_vitess_messages.vitess.grpc.dialect import AsyncVitessGrpcDialect, VitessGrpcDialect

HTTP2_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""The first bytes that an HTTP/2 server sends."""

TLS_HANDSHAKE = 0x16
"""The first byte that a TLS client sends."""


def address_of(query: str, user: str = "ada:s3cret@") -> Address:
    url = make_url(f"vitess+grpc://{user}h:1/k{query}")
    [[address, _keyspace], _options] = VitessGrpcDialect().create_connect_args(url)
    assert isinstance(address, Address)
    return address


@pytest.mark.parametrize(
    ("query", "secure"),
    [
        ("", False),
        ("?ssl=false", False),
        ("?timeout=1", False),
        ("?ssl=true", True),
        ("?ssl_ca=ca", True),
        ("?ssl_cert=cert&ssl_key=key", True),
        ("?ssl_ca=ca&ssl_cert=cert&ssl_key=key", True),
        ("?ssl=true&ssl_cert=cert&ssl_key=key", True),
    ],
)
def test_every_ssl_option_turns_tls_on(query: str, secure: bool) -> None:
    assert address_of(query).secure is secure


def test_the_options_reach_the_address() -> None:
    address = address_of("?ssl_ca=a&ssl_cert=c&ssl_key=k")
    assert address == Address("h:1", True, "a", "c", "k", "ada", "s3cret")
    assert address_of("", user="") == Address("h:1")
    url = make_url("vitess+grpc://h/k?timeout=1.5")
    assert AsyncVitessGrpcDialect().create_connect_args(url) == (
        [Address("h:15991"), "k"],
        {"timeout": 1.5, "is_async": True},
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?ssl=false&ssl_ca=ca", "ssl_ca are for TLS, which ssl=false turns off"),
        ("?ssl=0&ssl_cert=cert&ssl_key=key", "ssl_cert, ssl_key are for TLS, which ssl=false"),
        ("?ssl_cert=cert", "give both, or neither"),
        ("?ssl_key=key", "give both, or neither"),
        ("?ssl_ca=ca&ssl_key=key", "give both, or neither"),
        ("?ssl=maybe", "ssl='maybe': expected true or false"),
        ("?ssl=true&ssl=false", "ssl is given 2 times"),
        ("?ssl_ca=one&ssl_ca=two", "ssl_ca is given 2 times"),
        ("?sslmode=require", r"unknown options \['sslmode'\]; expected \['ssl', 'ssl_ca'"),
        ("?ssl_verify_cert=true", "unknown options"),
        ("?SSL_CA=ca", "unknown options"),
        ("?timeout=soon", "timeout='soon': expected seconds"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(query: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        address_of(query)
    assert "s3cret" not in str(raised.value)
    with pytest.raises(ArgumentError, match=message):
        create_engine(f"vitess+grpc://ada:s3cret@h:1/k{query}")


def test_an_empty_path_is_refused() -> None:
    url = make_url("vitess+grpc://h:1/k").set(query={"ssl_ca": ""})
    with pytest.raises(ArgumentError, match="ssl_ca: expected the path of a file"):
        VitessGrpcDialect().create_connect_args(url)


def test_an_address_without_tls_cannot_have_files() -> None:
    with pytest.raises(ArgumentError, match="ssl_ca are for TLS"):
        Address("h:1", ca="ca")


def test_credentials_are_not_shown() -> None:
    assert "s3cret" not in repr(address_of("?ssl=true"))


class Listener:
    """A server that records what clients send. It speaks just enough HTTP/2 to be sent a call."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                with client:
                    client.settimeout(2)
                    client.sendall(HTTP2_SETTINGS)
                    with suppress(OSError):
                        while data := client.recv(65_536):
                            self.received += data

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.mark.parametrize(("files", "tls"), [(True, True), (False, False)])
def test_a_client_certificate_alone_keeps_the_password_out_of_the_clear(
    tmp_path: Path, files: bool, tls: bool
) -> None:
    certificate: Any = trustme.CA().issue_cert("client@example.com")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    query = f"&ssl_cert={tmp_path}/cert.pem&ssl_key={tmp_path}/key.pem" if files else ""
    listener = Listener()
    engine = create_engine(
        f"vitess+grpc://ada:s3cret-word@127.0.0.1:{listener.port}/k?timeout=1{query}"
    )
    try:
        with pytest.raises(OperationalError):
            engine.connect()
    finally:
        engine.dispose()
        listener.close()
    assert (listener.received[0] == TLS_HANDSHAKE) is tls
    assert (b"s3cret-word" not in listener.received) is tls  # Else the check would prove nothing.
