"""Choose a subscriber's transport, and connect it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import URL, Engine, Table, create_engine
from sqlalchemy.exc import ArgumentError

from ..errors import InvalidArgument
from ..logs import get_logger
from ..rows.message import queue_table
from ..runtime import Runtime
from ..table.options import queue_options
from ..table.order import is_ordered
from ..table.reflect import check_database
from ..vitess.grpc.process import check_process
from ..vitess.server import is_vitess, is_vitess_grpc
from .base import M, Receiver, Transport
from .choice import Grpc, Pull, Stream, TransportChoice, check_choice
from .engines import READ_TIMEOUT, check_is_file, copy_engine, set_read_timeout
from .grpc_stream import GrpcTransport
from .mysql_stream import StreamTransport, check_stream
from .pull import PullTransport
from .shards import choose_shards, find_shards
from .streamable import find_unstreamable

__all__ = ["check_transport", "make_transport"]

log = get_logger(__name__)


def check_transport(
    engine: Engine, transport: TransportChoice, table: Table
) -> Pull | Stream | Grpc:
    """Return the transport to use, before anything is connected.

    ``auto`` streams over gRPC where the engine's URL is one for that, and pulls everywhere else.
    With vtgate's default flags a stream over the MySQL protocol delivers later, and with any flags
    it may lease more than was requested. The figures are in docs/explanation/transports.md.

    An ordered queue is always pulled from: a stream brings what is due, whatever precedes it.

    :param table: the queue.
    :raises InvalidArgument: when the engine or the queue can't do what the transport requires.
    """
    choice = check_choice(transport)
    if is_ordered(table):
        if isinstance(choice, (Stream, Grpc)):
            raise InvalidArgument(
                f"transport={type(choice).__name__.lower()!r}: {table.name!r} is ordered by "
                f"{', '.join(queue_options(table).ordered_by or ())}, and a stream brings each "
                "message as soon as it is due, whatever precedes it; use 'pull' or 'auto'"
            )
        choice = choice or Pull()
    speaks_grpc = is_vitess_grpc(engine.dialect)
    if choice is None:
        choice = Grpc() if speaks_grpc else Pull()
    if isinstance(choice, Grpc):
        if choice.address is not None:
            _grpc_engine(engine, choice)
        elif not speaks_grpc:
            raise InvalidArgument(
                "transport='grpc': give vtgate's address for gRPC, as in "
                "transport=Grpc('host:15991') or in a bind such as "
                "vitess+grpc://user@host:15991/keyspace"
            )
    if isinstance(choice, Stream):
        check_stream(engine)
    return choice


def make_transport(
    model: type[M],
    engine: Engine,
    choice: Pull | Stream | Grpc,
    *,
    receiver: Receiver[M],
    runtime: Runtime,
) -> Transport[M]:
    """Connect, check that the queue is there, and return the transport.

    :raises QueueNotFound: when the table is missing, or is not the model's queue.
    :raises InvalidArgument: when the database can't do what the transport requires, or has no such
        shards.
    :raises MessageQueueError: for gRPC, in a process that was forked after it had been used.
    """
    pulling = choice if isinstance(choice, Pull) else Pull()
    vitess = _check_queue(model, engine, pulling.shards)
    pull = PullTransport(model, engine, pulling, vitess=vitess, receiver=receiver)
    if isinstance(choice, Pull):
        return pull
    if not vitess:
        raise InvalidArgument(
            f"transport={type(choice).__name__.lower()!r}: the {engine.url.get_backend_name()} "
            "database is no Vitess and streams nothing; use 'pull' or 'auto'"
        )
    if isinstance(choice, Grpc):
        check_process()
    loads_by_id = _loads_by_id(model, engine)
    if isinstance(choice, Stream):
        return StreamTransport(
            model, engine, pull, receiver=receiver, runtime=runtime, loads_by_id=loads_by_id
        )
    return GrpcTransport(
        model,
        engine,
        pull,
        grpc=_grpc_engine(engine, choice),
        receiver=receiver,
        runtime=runtime,
        loads_by_id=loads_by_id,
    )


def _loads_by_id(model: type[M], engine: Engine) -> bool:
    """Return whether each streamed message has to be loaded by its id."""
    with engine.connect() as connection:
        unstreamable = find_unstreamable(connection, model)
    if unstreamable:
        log.info(
            "streamed messages are loaded by SELECT, because of %s", ", ".join(unstreamable),
            extra={"queue": queue_table(model).name},
        )  # fmt: skip
    return bool(unstreamable)


def _grpc_engine(engine: Engine, choice: Grpc) -> Engine:
    """Return an engine for the stream alone: it shares no connection with what pulls.

    :raises InvalidArgument: when the address has options that don't exist, or a password would
        leave TLS.
    """
    if choice.address is None:
        return copy_engine(engine)
    url, bound = choice.url(), engine.url
    url = url.set(database=url.database or bound.database)
    try:
        if url.username is None and bound.username is not None:
            url = url.set(username=bound.username, password=bound.password)
            _check_tls(url, bound)
        options = engine.get_execution_options()
        made = _create_engine(url, options, is_async=engine.dialect.is_async)
        made.dialect.create_connect_args(url)  # Refuses options that it doesn't know.
    except ArgumentError as error:
        raise InvalidArgument(f"Grpc(address): {error}") from error
    set_read_timeout(made, READ_TIMEOUT)
    return made


def _create_engine(url: URL, options: Mapping[str, Any], *, is_async: bool) -> Engine:
    if not is_async:
        return create_engine(url, execution_options=options)
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url, execution_options=options).sync_engine


def _check_tls(url: URL, bound: URL) -> None:
    """Check that the password of a bind with TLS isn't sent to an address without.

    :raises InvalidArgument: with the remedy.
    """
    uses_tls = [any(name.startswith("ssl") for name in one.query) for one in (bound, url)]
    if bound.password is not None and uses_tls == [True, False]:
        raise InvalidArgument(
            "Grpc(address): the bind uses TLS, and its password would go to this address in the "
            "clear; add '?ssl_ca=…' or '?ssl=true' to the address"
        )


def _check_queue(model: type[M], engine: Engine, shards: Sequence[str] | None) -> bool:
    """Check that the queue is there, in these shards, and return whether this is Vitess.

    :raises QueueNotFound: when the table is missing, or is not the model's queue.
    :raises InvalidArgument: when there are no such shards, or it is a SQLite database in memory.
    """
    table = queue_table(model)
    with engine.connect() as connection:
        check_is_file(connection, table)
        check_database(connection, table)
        vitess = is_vitess(connection)
    if shards is not None:
        found = find_shards(engine, table) if vitess else []
        if found is not None:
            choose_shards(found, shards)
    return vitess
