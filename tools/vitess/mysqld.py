"""A mysqld: the database below a tablet or vtcombo, or a plain MySQL for the tests."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

from .downloads import Programs, cache_dir
from .process import Server, ServerFailed, free_port, give_to_servers, listens, make_folder, popen

USERS = ("vt_dba", "vt_app", "vt_allprivs", "vt_repl", "vt_filtered")
"""The accounts that a vttablet uses. They have no password: the server listens on loopback only."""

SETTINGS = """\
[mysqld]
bind-address=127.0.0.1
mysqlx=0
skip-name-resolve
default_authentication_plugin=mysql_native_password
skip-ssl
log-bin=binlog
gtid_mode=ON
enforce_gtid_consistency=ON
binlog_format=ROW
log_slave_updates=ON
performance_schema=OFF
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_flush_log_at_trx_commit=2
innodb_use_native_aio=0
sync_binlog=0
max_connections=500
"""

_initializing = threading.Lock()
"""Held while the template of all data folders is made: several servers may start at once."""


class MySQL(Server):
    """A mysqld with its data in ``folder/name``.

    :param databases: the names of the databases that the first start creates.
    """

    def __init__(self, name: str, folder: Path, programs: Programs, databases: list[str]) -> None:
        self.data = folder / name
        self.socket = self.data / "mysql.sock"
        self.settings = self.data / "my.cnf"
        self._programs = programs
        self._databases = databases
        port_file = self.data / "port"
        self.port = int(port_file.read_text()) if port_file.exists() else free_port()
        super().__init__(
            name,
            folder,
            [
                str(programs.mysqld),
                f"--defaults-file={self.settings}",
                f"--init-file={self.data}/init.sql",
            ],
            env={"LD_LIBRARY_PATH": programs.libraries},
        )

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the first database."""
        return f"mysql+pymysql://vt_dba@127.0.0.1:{self.port}/{self._databases[0]}"

    def start(self) -> None:
        if not self.data.exists():
            self._create()
        super().start()

    def wait(self) -> None:
        """Wait until it accepts connections."""
        self.wait_until(lambda: listens(self.port))

    def _create(self) -> None:
        shutil.copytree(_initialized(self._programs), self.data)
        (self.data / "port").write_text(str(self.port))
        (self.data / "init.sql").write_text(self._first_statements())
        self.settings.write_text(
            f"{SETTINGS}basedir={self._programs.mysqld.parent.parent}\ndatadir={self.data}/data\n"
            f"port={self.port}\nserver-id={self.port}\nsocket={self.socket}\n"
            f"pid-file={self.data}/mysqld.pid\n"
            # At startup a server deletes all files here that look like its temporary tables.
            f"tmpdir={self.data}/scratch\n"
        )
        (self.data / "scratch").mkdir()
        give_to_servers(self.data)

    def _first_statements(self) -> str:
        """Return the statements that run at every start; they are idempotent."""
        lines = ["SET sql_log_bin=0;"]
        lines += [f"CREATE DATABASE IF NOT EXISTS `{name}`;" for name in self._databases]
        for user in USERS:
            lines.append(
                f"CREATE USER IF NOT EXISTS {user}@'%' IDENTIFIED WITH mysql_native_password BY '';"
            )
            lines.append(f"GRANT ALL ON *.* TO {user}@'%' WITH GRANT OPTION;")
        return "\n".join(lines) + "\n"


def _initialized(programs: Programs) -> Path:
    """Return an initialized, empty data folder, the template of every mysqld's data folder."""
    version = subprocess.run(
        [programs.mysqld, "--version"],
        env={"LD_LIBRARY_PATH": programs.libraries},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[2]
    template = cache_dir() / f"mysql-data-{version}"
    with _initializing:
        if not template.exists():
            _initialize(template, programs)
    return template


def _initialize(template: Path, programs: Programs) -> None:
    work = template.with_name(f"{template.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    (work / "my.cnf").write_text(
        f"[mysqld]\nbasedir={programs.mysqld.parent.parent}\ndatadir={work}/data\n"
        "innodb_log_file_size=16M\ninnodb_use_native_aio=0\nskip-log-bin\n"
    )
    command = [str(programs.mysqld), f"--defaults-file={work}/my.cnf", "--initialize-insecure"]
    done = popen(
        command,
        env={"LD_LIBRARY_PATH": programs.libraries},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = done.communicate(timeout=300)
    if done.returncode:
        raise ServerFailed(f"mysqld --initialize-insecure failed\n{output.decode()[-2000:]}")
    (work / "data/auto.cnf").unlink(missing_ok=True)  # The server's UUID, which must be unique.
    (work / "my.cnf").unlink()
    work.rename(template)
