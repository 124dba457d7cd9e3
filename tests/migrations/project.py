"""A project with models and migrations in a folder of its own, in which Alembic's commands run."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import alembic.config
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, create_engine, inspect, select
from sqlalchemy.exc import OperationalError

from tests.backends import eventually

everywhere = pytest.mark.parametrize(
    "project", ["sqlite", "mysql", "mariadb", "vtgate", "sharded"], indirect=True
)
"""For tests with the fixture ``project``: it is on each kind of database, one after the other."""

_MODELS = """\
from sqlalchemy import *
from sqlalchemy.orm import *
from sqla_vitess_messages import MessageQueueMixin, QueueOptions

class Base(DeclarativeBase):
    pass

"""

_SHARED_DATABASE = """\
context.configure(
        include_name=lambda name, type_, _: type_ != "table" or name.startswith("{name}"),
        version_table="{name}_version",
        version_table_schema={schema!r},
"""


class CommandFailed(Exception):
    """An alembic command failed; the text is what it printed."""


class Project:
    """A user's project: ``alembic.ini``, ``env.py``, models, and a database.

    :param folder: is created.
    :param version_table_schema: the schema of Alembic's version table; default: the database's own.
    """

    def __init__(self, folder: Path, url: str, version_table_schema: str | None = None) -> None:
        self.folder = folder
        self.url = url
        self.name = f"m{secrets.token_hex(5)}"
        """The prefix of the names of this project's tables; the database may contain others."""
        self.engine: Engine = create_engine(url)
        folder.mkdir(exist_ok=True)
        with _chdir(folder):
            alembic.config.main(argv=["init", "migrations"])
        ini = folder / "alembic.ini"
        text = re.sub("sqlalchemy.url = .*", f"sqlalchemy.url = {url}", ini.read_text())
        ini.write_text(text)
        env = folder / "migrations" / "env.py"
        text = env.read_text().replace(
            "target_metadata = None", "import models\ntarget_metadata = models.Base.metadata"
        )
        # Other tests in this process check what is logged.
        text = text.replace("fileConfig(", "fileConfig(disable_existing_loggers=False, fname=")
        if not url.startswith("sqlite"):
            settings = _SHARED_DATABASE.format(name=self.name, schema=version_table_schema)
            text = text.replace("context.configure(", settings)
        env.write_text(text)

    def write_models(self, source: str) -> ModuleType:
        """Replace the models. ``{name}`` stands for the prefix of the tables' names."""
        (self.folder / "models.py").write_text(_MODELS + source.replace("{name}", self.name))
        sys.modules.pop("models", None)
        with _chdir(self.folder):
            return importlib.import_module("models")

    def alembic(self, *arguments: str) -> str:
        """Run an alembic command, and return its output.

        :raises CommandFailed: when it ends with an error.
        """
        printed = io.StringIO()
        sys.modules.pop("models", None)
        with contextlib.redirect_stdout(printed), _chdir(self.folder):
            try:
                self._run(arguments)
            except SystemExit as error:
                raise CommandFailed(printed.getvalue()) from error
        return printed.getvalue()

    @staticmethod
    def _run(arguments: Sequence[str]) -> None:
        try:
            alembic.config.main(argv=[*arguments])
        except OperationalError as error:
            # During a change of the vschema, vtgate may not know a table for a moment.
            if "not found" not in str(error.orig):
                raise
            time.sleep(1)
            alembic.config.main(argv=[*arguments])

    def revision(self) -> str:
        """Autogenerate a revision, and return the source of its functions without comments."""
        before = set(self._scripts())
        self.alembic("revision", "--autogenerate", "-m", f"step {len(before)}")
        [script] = set(self._scripts()) - before
        text = script.read_text()
        body = text[text.index("def upgrade") :]
        return re.sub(r'( *"""[^\n]*"""\n)|( *#[^\n]*\n)', "", body)

    def edit_last(self, change: Callable[[str], str]) -> None:
        """Edit the newest script, as its author may."""
        script = max(self._scripts(), key=lambda path: path.stat().st_mtime_ns)
        script.write_text(change(script.read_text()))

    def heads(self) -> list[str]:
        """Return the ids of the revisions, the newest first."""
        script = ScriptDirectory(str(self.folder / "migrations"))
        return [revision.revision for revision in script.walk_revisions()]

    def run_sql(self, sql: str) -> None:
        """Run the statements that ``--sql`` printed.

        :param sql: may create Alembic's version table again, which is dropped first.
        """
        if "CREATE TABLE" in sql and "_version" in sql:
            with self.engine.begin() as connection:
                for table in ("alembic_version", f"{self.name}_version"):
                    Table(table, MetaData()).drop(connection, checkfirst=True)
        lines = [line for line in sql.splitlines() if not line.startswith("--")]
        with self.engine.connect() as connection:
            for statement in "\n".join(lines).split(";\n"):
                if statement.strip(" ;\n"):
                    connection.exec_driver_sql(statement.strip(" ;\n").replace("%", "%%"))
            connection.commit()

    def is_up_to_date(self) -> bool:
        """Return whether ``alembic check`` finds the models and the database to be the same."""
        try:
            self.alembic("check")
        except CommandFailed as error:
            if "New upgrade operations detected" not in str(error):
                raise
            print(error)
            return False
        return True

    def wait_until_known(self, model: Any) -> None:
        """Wait until the server knows each column: vtgate learns of a new one after a moment."""

        def is_known() -> bool:
            with self.engine.connect() as connection:
                try:
                    connection.execute(select(model.__table__)).all()
                except OperationalError:
                    return False
                return True

        eventually(is_known)

    def _scripts(self) -> list[Path]:
        return list((self.folder / "migrations" / "versions").glob("*.py"))

    def close(self) -> None:
        """Drop the project's remaining tables."""
        names = [n for n in inspect(self.engine).get_table_names() if n.startswith(self.name)]
        metadata = MetaData()
        metadata.reflect(self.engine, only=names)
        metadata.drop_all(self.engine)
        self.engine.dispose()


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    sys.path_importer_cache.pop(".", None)  # Alembic's own entry, of the previous folder.
    sys.dont_write_bytecode = True  # The next models.py may have the same time and size.
    try:
        yield
    finally:
        sys.dont_write_bytecode = False
        os.chdir(before)
        sys.path.remove(str(folder))
