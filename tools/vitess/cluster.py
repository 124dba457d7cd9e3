"""A Vitess cluster of separate processes, as in production.

Its keyspaces are ``main``, unsharded, with a primary and a replica, and ``sharded``, with the
shards -80 and 80-. Of its two vtgates, ``vtgate`` has default flags, and ``vtgate-fast`` has a
flush delay of 1 ms.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pymysql

from .downloads import Programs, install
from .flags import spell
from .mysqld import MySQL
from .process import Ports, Server, ServerFailed, listens, make_folder

CELL = "local"
MAIN = "main"
SHARDED = "sharded"


@dataclass(frozen=True)
class Tablet:
    """A vttablet, with its keyspace and shard."""

    uid: int
    keyspace: str
    shard: str

    @property
    def alias(self) -> str:
        return f"{CELL}-{self.uid:010d}"

    @property
    def name(self) -> str:
        return f"vttablet-{self.uid}"


TABLETS = (
    Tablet(100, MAIN, "0"),
    Tablet(101, MAIN, "0"),
    Tablet(200, SHARDED, "-80"),
    Tablet(300, SHARDED, "80-"),
)
PRIMARIES = (TABLETS[0], TABLETS[2], TABLETS[3])
SPLIT = (
    Tablet(400, SHARDED, "-40"),
    Tablet(401, SHARDED, "40-80"),
    Tablet(402, SHARDED, "80-c0"),
    Tablet(403, SHARDED, "c0-"),
)
"""The tablets that :meth:`Cluster.split_shards` starts."""
GATES = {"vtgate": [], "vtgate-fast": ["--mysql-server-flush-delay", "1ms"]}


class Cluster:
    """The cluster whose data is in ``folder``: created by the first start, reused by later ones.

    :param version: of Vitess; see :func:`.install`.
    :param replicas: whether to start tablets that become no primary. They repeat all work.
    """

    def __init__(self, folder: Path, version: str | None = None, *, replicas: bool = True) -> None:
        self._folder = folder
        self._tablets = TABLETS if replicas else PRIMARIES
        self._programs = install(version)
        make_folder(folder)
        self.ports = Ports(folder / "ports-by-name.json")
        self._mysqlds = {
            tablet: MySQL(f"mysqld-{tablet.uid}", folder, self._programs, [f"vt_{tablet.keyspace}"])
            for tablet in (*TABLETS, *SPLIT)
        }
        self.servers: dict[str, Server] = {mysqld.name: mysqld for mysqld in self._mysqlds.values()}
        environment = {"VTDATAROOT": str(folder)}
        for name, command in self._commands(self._programs).items():
            self.servers[name] = Server(name, folder, command, env=environment)

    def url(self, keyspace: str = MAIN, gate: str = "vtgate") -> str:
        """Return the SQLAlchemy URL of a keyspace through one of the vtgates."""
        return f"mysql+pymysql://user@127.0.0.1:{self.ports[f'{gate} mysql']}/{keyspace}"

    def grpc(self, gate: str = "vtgate") -> str:
        """Return ``host:port`` of a vtgate's gRPC."""
        return f"127.0.0.1:{self.ports[f'{gate} grpc']}"

    def start(self) -> None:
        """Start every server and wait until both vtgates serve. Safe to repeat."""
        first_time = not (self._folder / "initialized").exists()
        self.servers["etcd"].start()
        for tablet in self._tablets:
            self.servers[f"mysqld-{tablet.uid}"].start()
        self.servers["etcd"].wait_until(lambda: listens(self.ports["etcd"]))
        self.servers["vtctld"].start()
        self.servers["vtctld"].wait_until(lambda: listens(self.ports["vtctld grpc"]))
        if first_time:
            self._make_topology()
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start_tablet, self._tablets))
        if first_time:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.reparent, PRIMARIES))
            (self._folder / "initialized").touch()
        for gate in GATES:
            self.servers[gate].start()
        for gate in GATES:
            self.wait_for_gate(gate)

    def stop(self) -> None:
        """Stop every running server. Safe to repeat."""
        with ThreadPoolExecutor() as pool:
            for kind in ("vtgate", "vttablet", "vtctld", "mysqld", "etcd"):
                servers = [s for name, s in self.servers.items() if name.startswith(kind)]
                list(pool.map(partial(_stop, grace=10 if kind == "mysqld" else 2), servers))

    def kill(self, name: str) -> None:
        """Kill one server with SIGKILL, as in a crash."""
        self.servers[name].kill()

    def restart(self, name: str) -> None:
        """Restart one server and wait until it serves."""
        server = self.servers[name]
        server.stop()
        server.start()
        if name in GATES:
            self.wait_for_gate(name)
        elif name.startswith("vttablet"):
            server.wait_until(lambda: listens(self.ports[f"{name} grpc"]))

    def upgrade(self, name: str, version: str) -> None:
        """Restart one server as another version of Vitess, and wait until it serves."""
        self._programs = install(version)
        self.servers[name].stop()
        self.servers[name].command = self._commands(self._programs)[name]
        self.restart(name)

    def reparent(self, primary: Tablet) -> None:
        """Make a tablet the primary of its shard, as planned maintenance does."""
        self.vtctl(
            "PlannedReparentShard", f"{primary.keyspace}/{primary.shard}",
            "--new-primary", primary.alias,
        )  # fmt: skip

    def primary(self, keyspace: str = MAIN, shard: str = "0") -> Tablet:
        """Return the tablet that is currently the shard's primary."""
        record = json.loads(self.vtctl("GetShard", f"{keyspace}/{shard}"))
        uid = record["shard"]["primary_alias"]["uid"]
        return next(tablet for tablet in TABLETS if tablet.uid == uid)

    def split_shards(self) -> None:
        """Reshard ``sharded`` from two shards to four, and switch the traffic."""
        for tablet in SPLIT:
            self.servers[f"mysqld-{tablet.uid}"].start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start_tablet, SPLIT))
            list(pool.map(self.reparent, SPLIT))
        sources = ",".join(tablet.shard for tablet in TABLETS if tablet.keyspace == SHARDED)
        targets = ",".join(tablet.shard for tablet in SPLIT)
        reshard = ("Reshard", "--workflow", "split", "--target-keyspace", SHARDED)
        self.vtctl(*reshard, "create", "--source-shards", sources, "--target-shards", targets)

        def is_copied() -> bool:
            [workflow] = json.loads(self.vtctl(*reshard, "show"))["workflows"]
            streams = [
                stream
                for shard in workflow["shard_streams"].values()
                for stream in shard["streams"]
            ]
            return all(stream["state"] == "Running" for stream in streams)

        self.servers[SPLIT[0].name].wait_until(is_copied)
        self.vtctl(*reshard, "switchtraffic")

    def vtctl(self, *arguments: str) -> str:
        """Run vtctldclient and return its output."""
        command = [str(self._programs.vitess / "vtctldclient")]
        command += ["--server", f"127.0.0.1:{self.ports['vtctld grpc']}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise ServerFailed(f"vtctldclient {' '.join(arguments)}\n{done.stderr[-2000:]}")
        return done.stdout

    def wait_for_gate(self, gate: str) -> None:
        """Wait until a vtgate serves queries from every shard."""
        port = self.ports[f"{gate} mysql"]
        shards = [f"{t.keyspace}:{t.shard}" for t in PRIMARIES]
        self.servers[gate].wait_until(lambda: all(_answers(port, shard) for shard in shards))

    def _make_topology(self) -> None:
        self.vtctl(
            "AddCellInfo", "--root", f"/vitess/{CELL}",
            "--server-address", f"127.0.0.1:{self.ports['etcd']}", CELL,
        )  # fmt: skip
        for keyspace in (MAIN, SHARDED):
            self.vtctl("CreateKeyspace", "--durability-policy=none", keyspace)
            vschema = {"sharded": keyspace == SHARDED}
            self.vtctl("ApplyVSchema", "--vschema", json.dumps(vschema), keyspace)

    def _start_tablet(self, tablet: Tablet) -> None:
        self._mysqlds[tablet].wait()
        server = self.servers[tablet.name]
        server.start()
        server.wait_until(lambda: listens(self.ports[f"{tablet.name} grpc"]))

    def _commands(self, programs: Programs) -> dict[str, list[str]]:
        """Return the command of each server but the mysqlds."""
        ports, vitess = self.ports, programs.vitess
        topology = [
            "--topo-implementation", "etcd2",
            "--topo-global-server-address", f"127.0.0.1:{ports['etcd']}",
            "--topo-global-root", "/vitess/global",
        ]  # fmt: skip
        commands = {
            "vtctld": [
                str(vitess / "vtctld"), *topology, *self._listening("vtctld"),
                "--service-map", "grpc-vtctl,grpc-vtctld",
            ]
        }  # fmt: skip
        for tablet, mysqld in self._mysqlds.items():
            commands[tablet.name] = [
                str(vitess / "vttablet"), *topology, *self._listening(tablet.name),
                "--tablet-path", tablet.alias, "--tablet-hostname", "127.0.0.1",
                "--init-keyspace", tablet.keyspace, "--init-shard", tablet.shard,
                "--init-tablet-type", "replica", "--health-check-interval", "1s",
                "--db-socket", str(mysqld.socket), "--mycnf-server-id", str(mysqld.port),
                "--mycnf-socket-file", str(mysqld.socket),
                "--mycnf-data-dir", f"{mysqld.data}/data",
                "--mycnf-mysql-port", str(mysqld.port),
                "--service-map", "grpc-queryservice,grpc-tabletmanager,grpc-updatestream",
            ]  # fmt: skip
        for gate, flags in GATES.items():
            commands[gate] = [
                str(vitess / "vtgate"), *topology, *self._listening(gate), *flags,
                "--cell", CELL, "--cells-to-watch", CELL,
                "--tablet-types-to-wait", "PRIMARY", "--service-map", "grpc-vtgateservice",
                "--tablet-refresh-interval", "1s",
                "--mysql-auth-server-impl", "none", "--vschema-ddl-authorized-users", "%",
                "--mysql-server-bind-address", "127.0.0.1",
                "--mysql-server-port", str(ports[f'{gate} mysql']),
            ]  # fmt: skip
        return {"etcd": self._etcd(programs)} | {
            name: spell(programs, command) for name, command in commands.items()
        }

    def _listening(self, name: str) -> list[str]:
        return [
            "--bind-address", "127.0.0.1", "--port", str(self.ports[name]),
            "--grpc-bind-address", "127.0.0.1", "--grpc-port", str(self.ports[f'{name} grpc']),
        ]  # fmt: skip

    def _etcd(self, programs: Programs) -> list[str]:
        client = f"http://127.0.0.1:{self.ports['etcd']}"
        peer = f"http://127.0.0.1:{self.ports['etcd peer']}"
        return [
            str(programs.etcd), "--data-dir", f"{self._folder}/etcd", "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}",
        ]  # fmt: skip


def _stop(server: Server, grace: float) -> None:
    server.stop(grace)


def _answers(port: int, shard: str) -> bool:
    try:
        with pymysql.connect(host="127.0.0.1", port=port, user="user", database=shard,
                             connect_timeout=5, read_timeout=5) as connection:  # fmt: skip
            connection.cursor().execute("SELECT 1 FROM dual")
    except (pymysql.MySQLError, OSError):
        return False
    return True
