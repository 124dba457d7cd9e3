"""The same work with PyMySQL, grpcio and sqlite3, as references for this library."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pymysql
from pymysql.cursors import SSCursor
from sqlalchemy import URL

from benchmarks.tables import BODY
from sqla_vitess_messages.vitess.grpc.values import converter_of, decode
from sqla_vitess_messages.vitess.grpc.vtgate_pb2 import (
    BoundQuery,
    Session,
    StreamExecuteRequest,
    StreamExecuteResponse,
)

FIRST_ID = 10**18


def connect(url: URL, **options: Any) -> pymysql.Connection[Any]:
    return pymysql.connect(
        host=url.host, port=url.port or 3306, user=url.username or "", database=url.database,
        autocommit=True, **options,
    )  # fmt: skip


@contextmanager
def mysql_stream(url: URL, table: str) -> Iterator[SSCursor]:
    """Yield a cursor that reads the stream."""
    connection = connect(url, cursorclass=SSCursor)
    cursor = connection.cursor()
    cursor.execute("SET workload='olap'")
    cursor.execute(f"stream * from {table}")
    try:
        yield cursor
    finally:
        connection._force_close()  # A regular close would read up to an end that never comes.
        cursor._result.unbuffered_active = False
        cursor._result = None


@contextmanager
def grpc_stream(address: str, table: str, keyspace: str) -> Iterator[Iterator[list[Any]]]:
    """Yield an iterator over lists of rows, as they arrive."""
    with grpc.insecure_channel(address) as channel:
        stream = channel.unary_stream(
            "/vtgateservice.Vitess/StreamExecute",
            StreamExecuteRequest.SerializeToString,
            StreamExecuteResponse.FromString,
        )
        session = Session(autocommit=True, target_string=keyspace)
        session.options.included_fields = 2
        call = stream(StreamExecuteRequest(query=BoundQuery(sql=f"stream * from {table}"),
                                           session=session))  # fmt: skip
        yield _decoded(call)
        call.cancel()


def _decoded(call: Any) -> Iterator[list[Any]]:
    converters: list[Any] = []
    for response in call:
        if response.result.fields:
            converters = [converter_of(field) for field in response.result.fields]
        yield decode(response.result.rows, converters)


def enqueue_one(connection: pymysql.Connection[Any], table: str, number: int) -> None:
    """Insert one message in its own transaction."""
    now = time.time_ns()
    cursor = connection.cursor()
    connection.begin()
    cursor.execute(
        f"INSERT INTO {table} (time_scheduled, id, time_next, epoch, time_created, priority, body)"
        " VALUES (%s, %s, %s, 0, %s, 50, %s)",
        (now, FIRST_ID + number, now, now, BODY),
    )
    connection.commit()


def ack(connection: Any, table: str, ids: list[int]) -> None:
    """Ack messages with one UPDATE."""
    marks = ", ".join(["%s"] * len(ids))
    connection.cursor().execute(
        f"UPDATE {table} SET time_acked = %s, time_next = NULL"
        f" WHERE id IN ({marks}) AND time_acked IS NULL",
        [time.time_ns(), *ids],
    )


def apply_and_ack(
    connection: pymysql.Connection[Any], table: str, effects: str, message_id: int
) -> None:
    """Commit an effect and an ack in one transaction."""
    connection.begin()
    connection.cursor().execute(f"INSERT INTO {effects} (id) VALUES (%s)", (message_id,))
    ack(connection, table, [message_id])
    connection.commit()


def lease_and_ack(path: str, table: str, effects: str, count: int, at_once: int) -> None:
    """Lease messages of SQLite with one UPDATE, then commit each effect with its ack."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    done = 0
    while done < count:
        now = time.time_ns()
        rows = connection.execute(
            f"UPDATE {table} SET time_next = ?, epoch = epoch + 1 WHERE id IN"
            f" (SELECT id FROM {table} WHERE time_acked IS NULL AND time_next < ?"
            " ORDER BY priority, time_next DESC LIMIT ?) RETURNING id, epoch, body",
            (now + 60 * 10**9, now, at_once),
        ).fetchall()
        for id_, _epoch, _body in rows:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"INSERT INTO {effects} (id) VALUES (?)", (id_,))
            connection.execute(
                f"UPDATE {table} SET time_acked = ?, time_next = NULL"
                " WHERE id = ? AND time_acked IS NULL",
                (now, id_),
            )
            connection.execute("COMMIT")
        done += len(rows)
    connection.close()
