"""Vitess's online DDL in migrations: each statement becomes a migration of Vitess's, waited for."""

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
from sqla_vitess_messages.ddl import is_vitess

__all__ = ["MigrationFailed", "use_ddl_strategy"]

POLL = 0.5
"""Seconds between two looks at a migration."""

log = logging.getLogger("alembic.runtime.migration.online_ddl")


class MigrationFailed(CommandError):
    """Vitess could not do a migration; the text has its reason."""


def use_ddl_strategy(connection: Connection, strategy: str = "vitess") -> None:
    """Let the DDL on a connection to Vitess go by online DDL, and wait for each statement.

    For ``env.py``, between ``context.configure(connection=…)`` and ``context.run_migrations()``.
    On other databases it does nothing.

    :param strategy: one of Vitess's, such as ``"vitess"`` or ``"direct"``, with its flags.
    :raises InvalidArgument: when the strategy is none of Vitess's.
    """
    if strategy.split(" ", 1)[0] not in ("vitess", "online", "mysql", "direct"):
        raise InvalidArgument(f"strategy={strategy!r}: expected 'vitess', 'mysql' or 'direct'")
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
    """Wait for the migration that a statement has begun, if it has."""
    if [column[0] for column in cursor.description or ()] != ["uuid"]:
        return
    [[uuid]] = cursor.fetchall()
    log.info("online DDL %s: %s", uuid, " ".join(statement.split()))
    shown: dict[str, str] = {}
    while True:
        rows = connection.execute(_ShowMigrations(uuid)).mappings().all()
        for row in rows:
            _show(row, shown)
        if rows and all(row["migration_status"] == "complete" for row in rows):
            return
        time.sleep(POLL)


def _show(row: Any, shown: dict[str, str]) -> None:
    """Log what is new of a migration on one shard.

    :raises MigrationFailed: when it won't come to an end.
    """
    status, shard = str(row["migration_status"]), str(row["shard"])
    if status in ("failed", "cancelled"):
        raise MigrationFailed(
            f"online DDL {row['migration_uuid']} {status} on shard {row['keyspace']}/{shard}: "
            f"{row['message'] or 'no reason given'}"
        )
    progress = f"{status}, {float(row['progress'] or 0):.0f} %"
    if shown.get(shard) != progress:
        shown[shard] = progress
        log.info("online DDL %s on %s/%s: %s", row["migration_uuid"], row["keyspace"], shard,
                 progress)  # fmt: skip
