"""Vitess's online DDL in migrations: wait for the Vitess migration that each statement starts."""

from __future__ import annotations

import logging
import time
from typing import Any

from alembic.util import CommandError
from sqlalchemy import BindParameter, Connection, bindparam, event, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import Executable

from sqla_vitess_messages import InvalidArgument
from sqla_vitess_messages.shown import shown
from sqla_vitess_messages.vitess.server import is_vitess

__all__ = ["MigrationFailed", "use_ddl_strategy"]

STRATEGIES = ("vitess", "online", "mysql", "direct")

POLL_INTERVAL = 0.5
"""Seconds between two polls of a migration's status."""

log = logging.getLogger("alembic.runtime.migration.online_ddl")


class MigrationFailed(CommandError):
    """A migration of Vitess failed or was cancelled; the text contains the reason."""


def use_ddl_strategy(connection: Connection, strategy: str = "vitess") -> None:
    """Use Vitess's online DDL for the DDL on a connection, and wait for each statement.

    Call it in ``env.py``, between ``context.configure(connection=…)`` and
    ``context.run_migrations()``. On other databases it does nothing.

    :param strategy: one of Vitess's, such as ``"vitess"`` or ``"direct"``, with its flags.
    :raises InvalidArgument: when Vitess has no such strategy.
    """
    if strategy.split(" ", 1)[0] not in STRATEGIES:
        raise InvalidArgument(f"strategy={shown(strategy)}: must begin with one of {STRATEGIES}")
    if not is_vitess(connection):
        return
    connection.execute(text("SET @@ddl_strategy = :strategy"), {"strategy": strategy})
    if not event.contains(connection, "after_cursor_execute", _wait):
        event.listen(connection, "after_cursor_execute", _wait)


class _ShowMigrations(Executable, ClauseElement):
    """``SHOW VITESS_MIGRATIONS LIKE <uuid>``."""

    inherit_cache = False

    def __init__(self, uuid: str) -> None:
        self.uuid: BindParameter[str] = bindparam("uuid", uuid)


@compiles(_ShowMigrations)
def _compile_show(element: _ShowMigrations, compiler: SQLCompiler, **kw: Any) -> str:
    return f"SHOW VITESS_MIGRATIONS LIKE {compiler.process(element.uuid, **kw)}"


def _wait(
    connection: Connection,
    cursor: Any,
    statement: str,
    _parameters: object,
    _context: object,
    _executemany: object,
) -> None:
    """Wait for the migration that a statement started, if it started one."""
    if [column[0] for column in cursor.description or ()] != ["uuid"]:
        return
    [[uuid]] = cursor.fetchall()
    log.info("online DDL %s: %s", uuid, " ".join(statement.split()))
    logged: dict[str, str] = {}
    while True:
        rows = connection.execute(_ShowMigrations(uuid)).mappings().all()
        for row in rows:
            _log_progress(row, logged)
        if rows and all(row["migration_status"] == "complete" for row in rows):
            return
        time.sleep(POLL_INTERVAL)


def _log_progress(row: Any, logged: dict[str, str]) -> None:
    """Log a migration's progress on one shard, if it has changed.

    :param row: of the migration and the shard.
    :param logged: the progress that was logged last, by the shard.
    :raises MigrationFailed: when the migration failed or was cancelled.
    """
    status, shard = str(row["migration_status"]), str(row["shard"])
    if status in ("failed", "cancelled"):
        raise MigrationFailed(
            f"online DDL {row['migration_uuid']} {status} on shard {row['keyspace']}/{shard}: "
            f"{row['message'] or 'no reason given'}"
        )
    progress = f"{status}, {float(row['progress'] or 0):.0f} %"
    if logged.get(shard) != progress:
        logged[shard] = progress
        log.info("online DDL %s on %s/%s: %s", row["migration_uuid"], row["keyspace"], shard,
                 progress)  # fmt: skip
