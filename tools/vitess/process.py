"""Start and stop server processes as an unprivileged user, each identified by its pid file."""

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
"""The user that root runs the servers as: mysqld and the Vitess programs refuse to run as root."""


class ServerFailed(RuntimeError):
    """A server exited, or did not start in time."""


def make_folder(folder: Path) -> None:
    """Create a folder that the servers can write to."""
    folder.mkdir(parents=True, exist_ok=True)
    give_to_servers(folder)


def give_to_servers(path: Path) -> None:
    """Make the servers' user the owner of ``path`` and everything below it."""
    if os.geteuid() == 0:
        shutil.chown(path, UNPRIVILEGED)
        for inside in path.rglob("*"):
            shutil.chown(inside, UNPRIVILEGED)


def popen(command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    """Start ``command`` unprivileged and in its own process session."""
    if os.geteuid() == 0:
        user = pwd.getpwnam(UNPRIVILEGED)
        # The argument "user" of Popen makes it fork, and gRPC's threads can crash the forked child.
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        command = ["setpriv", *ids, *command]
    return subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]


_taken: set[int] = set()


def free_port() -> int:
    """Return a port that is free and that this process was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _taken:
            _taken.add(port)
            return port


class Ports:
    """Ports by name, chosen at first use and saved, so that a restarted server keeps its port."""

    def __init__(self, saved: Path) -> None:
        self._saved = saved
        self._ports: dict[str, int] = json.loads(saved.read_text()) if saved.exists() else {}

    def __getitem__(self, name: str) -> int:
        if name not in self._ports:
            self._ports[name] = free_port()
            self._saved.write_text(json.dumps(self._ports))
        return self._ports[name]


class Startable(Protocol):
    """One or more servers whose data is in a folder."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Startable)


@contextlib.contextmanager
def temporary(make: Callable[[Path], S]) -> Iterator[S]:
    """Start servers in a temporary folder; stop them and delete the folder at the end.

    :param make: creates the servers in a folder, such as :class:`.Cluster`.
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
    """One server process, which another process can stop by means of the pid file."""

    def __init__(
        self,
        name: str,
        folder: Path,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._env = {**os.environ, **(env or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while the server is running, else None."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            if self._child is not None and self._child.pid == pid and self._child.poll() is None:
                return pid
            # The pid may have been reused by an unrelated process.
            started = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if self._child is None and started == self.command[0]:
                return pid
        return None

    def start(self) -> None:
        """Start the server, unless it is running."""
        if self.pid is None:
            with self.log.open("ab") as log:
                self._child = popen(
                    self.command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self._pid_file.write_text(str(self._child.pid))

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal, if it is running."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, timeout: float = 10) -> None:
        """Stop the server with SIGTERM, and with SIGKILL after ``timeout`` seconds."""
        self.signal(signal.SIGTERM)
        if not self._has_exited(timeout):
            self.kill()
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.signal(signal.SIGKILL)
        if not self._has_exited(10):
            raise ServerFailed(f"{self.name} survived SIGKILL")

    def wait_until(self, ready: Callable[[], bool], timeout: float = 90) -> None:
        """Wait until ``ready`` returns true.

        :raises ServerFailed: when the process exits or the time is over, with the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if self.pid is None or time.monotonic() > deadline:
                log = self.log.read_text(errors="replace")[-2000:]
                raise ServerFailed(f"{self.name} is not serving\n{log}")
            time.sleep(0.05)

    def _has_exited(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.pid is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def listens(port: int) -> bool:
    """Return whether something accepts connections on this port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
