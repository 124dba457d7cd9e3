"""A MariaDB server for the tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .downloads import Programs
from .process import Server, ServerFailed, free_port, give_to_servers, listens, make_folder, popen

FIRST_STATEMENTS = """\
CREATE DATABASE IF NOT EXISTS messages;
CREATE USER IF NOT EXISTS app@'%';
GRANT ALL ON *.* TO app@'%';
"""

NO_AIO = "--innodb-use-native-aio=0"
"""Many servers on one machine exhaust the kernel's limit for asynchronous I/O requests."""


class MariaDB(Server):
    """A mariadbd with its data in ``folder/name``."""

    def __init__(self, name: str, folder: Path, programs: Programs) -> None:
        self._base = programs.mariadbd.parent.parent
        self._data = folder / name
        self.port = free_port()
        arguments = {
            "basedir": self._base,
            "datadir": self._data / "data",
            # At startup a server deletes all files here that look like its temporary tables.
            "tmpdir": self._data / "scratch",
            "socket": self._data / "mariadb.sock",
            "pid-file": self._data / "mariadb.pid",
            "init-file": self._data / "init.sql",
            "bind-address": "127.0.0.1",
            "port": self.port,
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "16M",
            "innodb-flush-log-at-trx-commit": 2,
        }
        super().__init__(
            name,
            folder,
            [str(programs.mariadbd), "--no-defaults", "--skip-name-resolve", "--skip-ssl", NO_AIO]
            + [f"--{option}={value}" for option, value in arguments.items()],
        )

    @property
    def url(self) -> str:
        """The SQLAlchemy URL."""
        return f"mysql+pymysql://app@127.0.0.1:{self.port}/messages"

    def start(self) -> None:
        if not self._data.exists():
            self._create()
        super().start()

    def wait(self) -> None:
        """Wait until it accepts connections."""
        self.wait_until(lambda: listens(self.port))

    def _create(self) -> None:
        make_folder(self._data / "scratch")
        (self._data / "init.sql").write_text(FIRST_STATEMENTS)
        give_to_servers(self._data)
        installing = popen(
            [
                str(self._base / "scripts/mariadb-install-db"),
                "--no-defaults",
                f"--basedir={self._base}",
                f"--datadir={self._data}/data",
                f"--tmpdir={self._data}/scratch",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                NO_AIO,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = installing.communicate(timeout=120)
        if installing.returncode:
            raise ServerFailed(f"mariadb-install-db failed\n{output.decode()[-6000:]}")
