"""vtgate's gRPC protocol: values, transactions, errors, addresses, TLS and credentials."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import Engine, create_engine, delete, insert, select, text, update
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, mapped_column

import sqla_vitess_messages
from sqla_vitess_messages import Grpc, InvalidArgument, QueueOptions, Subscriber
from sqla_vitess_messages.aio import AsyncSubscriber
from sqla_vitess_messages.vitess.grpc.library import grpc
from tests.async_adapter import AsyncSubscriberAdapter
from tests.backends import ack, async_url, enqueue, eventually, make_queue_class
from tests.servers import server_url
from tools.vitess import VtCombo

MakeQueue = Callable[..., type[Any]]

COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "a_tinyint": (mysql.TINYINT, [-128, 127]),
    "a_tinyint_unsigned": (mysql.TINYINT(unsigned=True), [0, 255]),
    "a_bool": (mysql.BOOLEAN, [True, False]),
    "a_smallint": (mysql.SMALLINT, [-(2**15), 2**15 - 1]),
    "a_smallint_unsigned": (mysql.SMALLINT(unsigned=True), [0, 2**16 - 1]),
    "a_mediumint": (mysql.MEDIUMINT, [-(2**23), 2**23 - 1]),
    "a_mediumint_unsigned": (mysql.MEDIUMINT(unsigned=True), [0, 2**24 - 1]),
    "an_int": (mysql.INTEGER, [-(2**31), 2**31 - 1]),
    "an_int_unsigned": (mysql.INTEGER(unsigned=True), [0, 2**32 - 1]),
    "a_bigint": (mysql.BIGINT, [-(2**63), 2**63 - 1]),
    "a_bigint_unsigned": (mysql.BIGINT(unsigned=True), [0, 2**64 - 1]),
    # vtgate sends a float as "cast(… as DOUBLE)", which needs MySQL 8.0.17: newer than the tests'.
    "a_float": (mysql.FLOAT, [Decimal("-0.5"), Decimal(1024)]),
    "a_double": (mysql.DOUBLE(asdecimal=False), [Decimal("-0.125"), Decimal(2) ** 60]),
    "a_decimal": (mysql.DECIMAL(30, 10), [Decimal("-12345678901234567890.5"), Decimal(0)]),
    "a_date": (mysql.DATE, [date(1970, 1, 1), date(9999, 12, 31)]),
    "a_time": (mysql.TIME(fsp=6), [time(0, 0), time(23, 59, 59, 999_999)]),
    "a_datetime": (mysql.DATETIME(fsp=6), [datetime(1970, 1, 1), datetime(2026, 2, 3, 4, 5, 6, 7)]),
    "a_timestamp": (mysql.TIMESTAMP, [datetime(1980, 1, 1), datetime(2026, 2, 3, 4, 5, 6)]),
    "a_year": (mysql.YEAR, [1901, 2155]),
    "a_char": (mysql.CHAR(10), ["", "äöü€😀"]),
    "a_varchar": (mysql.VARCHAR(100), ["", "it's \\ % :a ? 😀"]),
    "a_binary": (mysql.BINARY(4), [b"\0\xff\0\x01", b"abcd"]),
    "a_varbinary": (mysql.VARBINARY(100), [b"", bytes(range(100))]),
    "a_tinytext": (mysql.TINYTEXT, ["", "ä"]),
    "a_text": (mysql.TEXT, ["", "ä" * 1000]),
    "a_mediumtext": (mysql.MEDIUMTEXT, ["", "ä" * 1000]),
    "a_longtext": (mysql.LONGTEXT, ["", "ä" * 100_000]),
    "a_tinyblob": (mysql.TINYBLOB, [b"", b"\0\xff"]),
    "a_blob": (mysql.BLOB, [b"", bytes(range(256))]),
    "a_mediumblob": (mysql.MEDIUMBLOB, [b"", bytes(range(256))]),
    "a_longblob": (mysql.LONGBLOB, [b"", bytes(range(256)) * 1000]),
    "an_enum": (mysql.ENUM("red", "grün"), ["red", "grün"]),
    "a_set": (mysql.SET("a", "b", "c"), [{"a"}, {"a", "c"}]),
    "a_json": (mysql.JSON, [{"a": [1, 2.5, None, "ä"]}, []]),
    "a_bit": (mysql.BIT(10), [0, 1023]),
}
"""Every column type of Vitess except the spatial ones, with values at its limits."""


def grpc_url(server: str = "vtgate", keyspace: str = "main") -> str:
    return f"vitess+grpc://user@{server_url(f'{server} grpc')}/{keyspace}"


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine(server_url("vtgate-fast"))
    yield engine
    engine.dispose()


@pytest.fixture
def grpc_engine() -> Iterator[Engine]:
    engine = create_engine(grpc_url())
    yield engine
    engine.dispose()


@pytest.fixture
def queue(engine: Engine) -> Iterator[type[Any]]:
    model = make_queue_class(QueueOptions(ack_wait=10, poller_interval=0.2))
    model.metadata.create_all(engine)
    yield model
    model.metadata.drop_all(engine)


def test_values_are_the_same_as_over_mysql(engine: Engine, grpc_engine: Engine) -> None:
    attributes = {name: mapped_column(type_) for name, (type_, _) in COLUMNS.items()}
    queue = make_queue_class(QueueOptions(ack_wait=60), attributes=attributes)
    queue.metadata.create_all(engine)
    sent = [
        {name: values[number] for name, (_, values) in COLUMNS.items()} for number in range(2)
    ] + [dict.fromkeys(COLUMNS)]

    def payload(message: Any) -> dict[str, Any]:
        return {name: getattr(message, name) for name in COLUMNS}

    def received(url: Any, transport: Any) -> dict[int, Any]:
        got: dict[int, Any] = {}
        with Subscriber(queue, url, transport=transport) as subscriber:
            # The first one is received with the backlog, the others over the stream.
            for messages in ([queue(**sent[0])], [queue(**values) for values in sent]):
                expected = {message.id: payload(message) for message in messages}
                enqueue(grpc_engine, messages[0])  # Enqueue in both ways as well.
                enqueue(engine, *messages[1:])
                for _ in messages:
                    message = subscriber.get(20)
                    assert message is not None
                    got[message.id] = payload(message)
                    assert got[message.id] == expected[message.id]
                    ack(engine, message)
        return got

    try:
        for url, transport in ((engine.url, "stream"), (grpc_url(), "grpc")):
            for id_, values in received(url, transport).items():
                statement = select(*(queue.__table__.c[name] for name in COLUMNS))
                rows = []
                for reader in (engine, grpc_engine):
                    with reader.connect() as connection:
                        row = connection.execute(statement.where(queue.id == id_)).one()
                    rows.append([(type(value), value) for value in row])
                assert rows[0] == rows[1]
                assert [value for _, value in rows[0]] == list(values.values())
    finally:
        queue.metadata.drop_all(engine)


def test_the_dialect_supports_transactions(
    engine: Engine, grpc_engine: Engine, queue: type[Any]
) -> None:
    def count() -> int:
        with engine.connect() as connection:
            return len(connection.execute(select(queue.id)).all())

    with Session(grpc_engine) as session:
        session.add(queue())
        session.flush()
        session.rollback()
    assert count() == 0
    with Session(grpc_engine) as session, session.begin():
        session.add_all([queue(id=1), queue(id=2)])
        session.flush()
        assert count() == 0
    assert count() == 2
    with grpc_engine.connect() as connection:
        # The number of rows matched, not of rows changed.
        again = update(queue).values(priority=50).where(queue.id.in_([1, 2, 3]))
        assert connection.execute(again).rowcount == 2
        assert connection.execute(delete(queue).where(queue.id == 1)).rowcount == 1
        connection.invalidate()
    assert count() == 2
    auto = grpc_engine.execution_options(isolation_level="AUTOCOMMIT")
    with auto.connect() as connection:
        connection.execute(insert(queue).values(id=3))
        connection.rollback()
    assert count() == 3


def test_errors_are_those_of_pymysql(grpc_engine: Engine, queue: type[Any]) -> None:
    enqueue(grpc_engine, queue(id=1))
    with pytest.raises(IntegrityError, match=r"\(1062, .*Duplicate entry"):
        enqueue(grpc_engine, queue(id=1))
    with pytest.raises(ProgrammingError, match=r"\(1146, "), grpc_engine.connect() as connection:
        connection.execute(text("SELECT * FROM there_is_no_such_table"))
    nobody = create_engine("vitess+grpc://user@127.0.0.1:1/main")
    with pytest.raises(OperationalError, match=r"\(2013, 'lost vtgate \(UNAVAILABLE\)"):
        nobody.connect()
    hasty = create_engine(f"{grpc_url()}?timeout=0.2")
    # Whose limit ends it first, is chance.
    ended = pytest.raises(OperationalError, match=r"(?i)deadline.?exceeded|\(CANCELLED\)")
    with hasty.connect() as connection, ended:
        connection.execute(text("SELECT SLEEP(5)"))
    with pytest.raises(Exception, match="complex: no value that MySQL has a type for"):
        grpc_engine.connect().execute(text("SELECT :a"), {"a": 1j})


def test_a_url_for_grpc_is_all_a_subscriber_needs(engine: Engine, queue: type[Any]) -> None:
    with Subscriber(queue, grpc_url()) as subscriber:
        enqueue(engine, queue())  # Pulled with the backlog.
        subscriber.ack(subscriber.get(20)).result(20)  # type: ignore[arg-type]
        enqueue(engine, queue(body="streamed"))
        message = subscriber.get(20)
        assert message is not None
        subscriber.ack(message).result(20)
        assert type(subscriber._loop._transport).__name__ == "GrpcTransport"
    with engine.connect() as connection:
        assert queue.stats(connection).acked == 2


def test_a_url_for_grpc_is_all_that_asyncio_needs(engine: Engine, queue: type[Any]) -> None:
    async def receive() -> str:
        application = create_async_engine(grpc_url())
        async with AsyncSubscriber(queue, grpc_url()) as subscriber:
            body = ""
            for sent in ("pulled", "streamed"):
                await asyncio.to_thread(enqueue, engine, queue(body=sent))
                message = await subscriber.get(20)
                assert message is not None
                body = message.body
                await subscriber.extend([message], 60)
                async with application.begin() as connection:
                    await connection.run_sync(message.fail)
            assert type(subscriber._loop._transport).__name__ == "GrpcTransport"
        await application.dispose()
        return body

    assert asyncio.run(receive()) == "streamed"
    with engine.connect() as connection:
        assert queue.stats(connection).dead == 2


@pytest.mark.parametrize(
    ("bind", "transport", "message"),
    [
        ("mysql+pymysql://u@h/k", "grpc", "give vtgate's address for gRPC"),
        ("mysql+pymysql://u@h/k", Grpc(), "give vtgate's address for gRPC"),
        ("mysql+pymysql://u@h/k", Grpc("vitess+grpc://h?sll=1"), "'ssl_ca'"),
        ("mysql+pymysql://u@h/k", Grpc("vitess+grpc://h?ssl_key=k"), "ssl_cert and ssl_key"),
        ("mysql+pymysql://u:s3cret@h/k?ssl_ca=ca", Grpc("h:1"), "in the clear"),
        ("vitess+grpc://h:1/k?sll=1", "auto", "expected a database URL"),
        ("vitess+grpc://u@h/k:-80", "auto", "name the keyspace alone"),
    ],
)
def test_what_does_not_go_together_is_refused(bind: str, transport: Any, message: str) -> None:
    model = make_queue_class(QueueOptions())
    with pytest.raises(InvalidArgument, match=message):
        Subscriber(model, bind, transport=transport)
    if bind.startswith("mysql"):
        with pytest.raises(InvalidArgument, match=message):
            AsyncSubscriber(model, async_url(bind, "asyncmy"), transport=transport)


@pytest.mark.parametrize("address", ["mysql://h/k", "h:port", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="expected vtgate's host:port"):
        Grpc(address)


def test_an_error_names_the_missing_extra() -> None:
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from sqlalchemy import create_engine\n"
        "import sqla_vitess_messages\n"
        "create_engine('vitess+grpc://h/k')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'sqla-vitess-messages[grpc]'" in done.stderr


class EndsFirstStreams(grpc.GenericRpcHandler):
    """Relays vtgate's calls as they are, but ends the first streams before their fields come.

    So does vtgate while a shard has no primary.
    """

    def __init__(self, address: str, count: int) -> None:
        self._vtgate = grpc.insecure_channel(address)
        self._remaining = count

    @property
    def has_ended_all(self) -> bool:
        return self._remaining == 0

    def service(self, details: Any) -> Any:
        method = details.method
        if method.endswith("/StreamExecute"):
            return grpc.unary_stream_rpc_method_handler(partial(self._stream, method))
        relay = self._vtgate.unary_unary(method)
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: relay(request))

    def _stream(self, method: str, request: bytes, context: Any) -> Iterator[bytes]:
        if self._remaining:
            self._remaining -= 1
            return
        call = self._vtgate.unary_stream(method)(request)
        context.add_callback(call.cancel)
        with suppress(grpc.RpcError):
            yield from call


@pytest.mark.parametrize("kind", [Subscriber, AsyncSubscriberAdapter])
def test_a_stream_that_ends_before_it_begins_is_opened_again(
    engine: Engine, queue: type[Any], caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    relay = EndsFirstStreams(server_url("vtgate grpc"), 2)
    server = grpc.server(ThreadPoolExecutor())
    server.add_generic_rpc_handlers([relay])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        bind = f"vitess+grpc://user@127.0.0.1:{port}/main"
        with kind(queue, bind) as subscriber:
            for _ in range(2):
                enqueue(engine, queue())
                message = subscriber.get(20)
                assert message is not None
                ack(engine, message)
                eventually(lambda: relay.has_ended_all)
    finally:
        server.stop(None).wait()
    assert "the subscriber has stopped" not in caplog.text


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools isn't installed with this Python")
    package = Path(sqla_vitess_messages.__file__).parent
    folder = package / "vitess" / "grpc"
    proto = folder / "vtgate.proto"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", package.parent,
         f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", proto],
        check=True,
    )  # fmt: skip
    for name in ("vtgate_pb2.py", "vtgate_pb2.pyi"):
        generated = (tmp_path / folder.relative_to(package.parent) / name).read_text()
        assert generated == (folder / name).read_text(), "run: make proto"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is readable for the servers' user."""
    folder = Path(tempfile.mkdtemp(prefix="sqla-vitess-messages-grpc-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(240)
def test_tls_and_credentials(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    server_url("dev")  # Skips the test on a machine without Vitess.
    ca, stranger = trustme.CA(), trustme.CA()
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("client@example.com")
    files = {
        "ca.pem": ca.cert_pem.bytes(),
        "stranger.pem": stranger.cert_pem.bytes(),
        "server.pem": server.cert_chain_pems[0].bytes(),
        "server.key": server.private_key_pem.bytes(),
        "client.pem": client.cert_chain_pems[0].bytes(),
        "client.key": client.private_key_pem.bytes(),
        "users.json": json.dumps([{"Username": "ada", "Password": "s3cret-word"}]).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    vtcombo = VtCombo(
        folder / "dev",
        flags=["--grpc-cert", f"{folder}/server.pem", "--grpc-key", f"{folder}/server.key",
               "--grpc-ca", f"{folder}/ca.pem", "--grpc-auth-mode", "static",
               "--grpc-auth-static-password-file", f"{folder}/users.json"],
    )  # fmt: skip
    caplog.set_level(logging.DEBUG)
    files_of_client = f"ssl_cert={folder}/client.pem&ssl_key={folder}/client.key"

    def url(user: str = "ada:s3cret-word", ca: str = "ca.pem", query: str = "") -> str:
        query = query or files_of_client
        return f"vitess+grpc://{user}@{vtcombo.grpc()}/main?ssl_ca={folder}/{ca}&{query}"

    try:
        vtcombo.start()
        model = make_queue_class(QueueOptions())
        plain = create_engine(vtcombo.url())
        model.metadata.create_all(plain)
        for bind, transport in ((url(), "auto"), (vtcombo.url(), Grpc(url()))):
            with Subscriber(model, bind, transport=transport) as subscriber:  # type: ignore[arg-type]
                for _ in range(2):
                    enqueue(plain, model())
                    assert subscriber.get(20) is not None
                shown = repr(subscriber) + repr(transport)
        for wrong, number in (
            (url(user="ada:no"), 1045),
            (url(user="ada"), 1045),
            (url(ca="stranger.pem"), 2013),
            (url(query="ssl=true"), 2013),
            # Without ssl_ca, to trust the test's own authority, but still over TLS.
            (url().replace(f"ssl_ca={folder}/ca.pem&", ""), 2013),
            (url().partition("?")[0], 2013),
        ):
            with pytest.raises(OperationalError, match=rf"\({number}, ") as raised:
                create_engine(wrong).connect()
            shown += str(raised.value)
        assert "s3cret" not in caplog.text + shown
    finally:
        vtcombo.stop()
