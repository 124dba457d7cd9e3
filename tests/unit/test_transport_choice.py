"""The ``transport`` argument of a subscriber: names, objects, and values that are refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url

from sqla_vitess_messages import (
    Grpc,
    InvalidArgument,
    InvalidArgumentType,
    Pull,
    QueueOptions,
    Stream,
    Subscriber,
)
from sqla_vitess_messages.transports.factory import check_transport
from tests.backends import make_queue_class

MYSQL = "mysql+pymysql://user@host/keyspace"
GRPC = "vitess+grpc://user@host:15991/keyspace"


def engine(url: str) -> Engine:
    """Return an engine, which isn't connected."""
    return create_engine(url)


@pytest.mark.parametrize(
    ("url", "transport", "chosen"),
    [
        ("sqlite:///a.db", "auto", Pull()),
        (MYSQL, "auto", Pull()),
        (GRPC, "auto", Grpc()),
        (GRPC, "pull", Pull()),
        (GRPC, "grpc", Grpc()),
        (MYSQL, "stream", Stream()),
        (MYSQL, Stream(), Stream()),
        (GRPC, Pull(shards=["-80"]), Pull(shards=["-80"])),
        (MYSQL, Grpc("host:15991"), Grpc("host:15991")),
        (GRPC, Grpc("other:15991"), Grpc("other:15991")),
    ],
)
def test_a_name_or_an_object_chooses_the_transport(url: str, transport: Any, chosen: Any) -> None:
    table = make_queue_class(QueueOptions()).__table__
    assert check_transport(engine(url), transport, table) == chosen


@pytest.mark.parametrize("url", ["sqlite:///a.db", MYSQL, GRPC])
def test_an_ordered_queue_is_pulled_from(url: str) -> None:
    ordered = make_queue_class(QueueOptions(ordered_by="body")).__table__
    for transport in ("auto", "pull"):
        assert check_transport(engine(url), transport, ordered) == Pull()  # type: ignore[arg-type]
    for refused in (Stream(), Grpc("host:15991")):
        with pytest.raises(InvalidArgument, match="is ordered by body, and a stream brings"):
            check_transport(engine(url), refused, ordered)


@pytest.mark.parametrize(
    ("url", "transport", "error", "text"),
    [
        (MYSQL, "push", InvalidArgument, "transport='push': expected one of"),
        (MYSQL, None, InvalidArgumentType, "not a NoneType"),
        (MYSQL, Pull, InvalidArgumentType, "not a type"),
        (MYSQL, "grpc", InvalidArgument, r"transport=Grpc\('host:15991'\)"),
        (MYSQL, Grpc(), InvalidArgument, r"transport=Grpc\('host:15991'\)"),
        (GRPC, "stream", InvalidArgument, "needs the driver pymysql"),
        ("sqlite:///a.db", "stream", InvalidArgument, "needs the driver pymysql"),
    ],
)
def test_a_transport_that_the_bind_does_not_allow_is_refused(
    url: str, transport: Any, error: type[Exception], text: str
) -> None:
    model = make_queue_class(QueueOptions())
    with pytest.raises(error, match=text):
        Subscriber(model, url, transport=transport)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"poll_interval": 0}, InvalidArgument, "poll_interval=0"),
        ({"poll_interval": "1"}, InvalidArgumentType, "poll_interval='1'"),
        ({"shards": "-80"}, InvalidArgumentType, "shards='-80'"),
        ({"shards": []}, InvalidArgument, r"shards=\[\]"),
        ({"shards": [""]}, InvalidArgument, "shards="),
    ],
)
def test_wrong_settings_of_a_pull_are_refused(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Pull(**arguments)


def test_a_poll_interval_may_be_a_timedelta() -> None:
    assert Pull(poll_interval=timedelta(seconds=2)).poll_interval == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("host:15991", "vitess+grpc://host:15991"),
        ("user:word@host:15991", "vitess+grpc://user:word@host:15991"),
        (GRPC, GRPC),
        (make_url(GRPC), GRPC),
    ],
)
def test_an_address_is_a_host_and_port_or_a_url(address: Any, url: str) -> None:
    assert Grpc(address).url() == make_url(url)


@pytest.mark.parametrize("address", [MYSQL, "", 15991, "vitess+grpc:///keyspace", "host:port"])
def test_other_addresses_are_refused(address: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected vtgate's host:port"):
        Grpc(address)


def test_an_address_is_not_shown() -> None:
    assert "s3cret" not in repr(Grpc("vitess+grpc://user:s3cret@host:15991/keyspace"))
    with pytest.raises(InvalidArgument) as raised:
        Grpc("mysql://user:s3cret@host/keyspace")
    assert "s3cret" not in str(raised.value)
