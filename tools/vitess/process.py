"""Start and end server processes, as a user without rights, each known by its pid file."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

UNPRIVILEGED = "nobody"
"""Whom root starts the servers as: mysqld and the Vitess programs refuse to be root."""


class ServerFailed(RuntimeError):
    """A server ended, or did not come up in time."""


def make_folder(folder: Path) -> None:
    """Make a folder that the servers can write in."""
    folder.mkdir(parents=True, exist_ok=True)
    give_to_servers(folder)


def give_to_servers(path: Path) -> None:
    """Let the servers' user own ``path`` and what is below it."""
    if os.geteuid() == 0:
        shutil.chown(path, UNPRIVILEGED)
        for inside in path.rglob("*"):
            shutil.chown(inside, UNPRIVILEGED)


def popen(command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    """Start ``command`` without rights and in a session of its own."""
    if os.geteuid() == 0:
        user = pwd.getpwnam(UNPRIVILEGED)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]


_taken: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on and that this process was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _taken:
            _taken.add(port)
            return port


class Ports:
    """Ports by name, chosen when first asked for, and kept: a part comes back where it was."""

    def __init__(self, saved: Path) -> None:
        self._saved = saved
        self._ports: dict[str, int] = json.loads(saved.read_text()) if saved.exists() else {}

    def __getitem__(self, name: str) -> int:
        if name not in self._ports:
            self._ports[name] = free_port()
            self._saved.write_text(json.dumps(self._ports))
        return self._ports[name]


class Startable(Protocol):
    """Servers with their data in a folder."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Startable)


@contextlib.contextmanager
def temporary(make: Callable[[Path], S]) -> Iterator[S]:
    """Start servers in a folder of their own, and remove both at the end.

    :param make: such as :class:`.Cluster`.
    """
    folder = Path(tempfile.mkdtemp(prefix="sqla-vitess-messages-"))
    folder.chmod(0o755)
    servers = make(folder)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """One server process. The pid file makes another process able to end it."""

    def __init__(
        self,
        name: str,
        folder: Path,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while the server runs, else None."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            if self._child is not None and self._child.pid == pid and self._child.poll() is None:
                return pid
            # The number may belong to a stranger by now.
            started = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if self._child is None and started == self._command[0]:
                return pid
        return None

    def start(self) -> None:
        """Start it; nothing happens if it runs."""
        if self.pid is None:
            with self.log.open("ab") as log:
                self._child = popen(
                    self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self._pid_file.write_text(str(self._child.pid))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it does not run."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, timeout: float = 10) -> None:
        """End it with SIGTERM, and with SIGKILL after ``timeout`` seconds."""
        self.signal(signal.SIGTERM)
        if not self._gone(timeout):
            self.kill()
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        if not self._gone(10):
            raise ServerFailed(f"{self.name} survived SIGKILL")

    def wait_until(self, ready: Callable[[], bool], timeout: float = 90) -> None:
        """Wait until ``ready`` answers yes.

        :raises ServerFailed: when the process ends or the time is over, with its last words.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if self.pid is None or time.monotonic() > deadline:
                log = self.log.read_text(errors="replace")[-2000:]
                raise ServerFailed(f"{self.name} is not serving\n{log}")
            time.sleep(0.05)

    def _gone(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.pid is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def listens(port: int) -> bool:
    """Say whether something accepts connections on this port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
