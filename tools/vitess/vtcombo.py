"""vtcombo: a whole Vitess in one process, as in the image ``vitess/vttestserver``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .cluster import CELL, MAIN, SHARDED, _answers
from .downloads import install
from .flags import spell
from .mysqld import MySQL
from .process import Ports, Server, make_folder

TOPOLOGY = (
    f'keyspaces:{{name:"{MAIN}" shards:{{name:"0"}}}} '
    f'keyspaces:{{name:"{SHARDED}" shards:{{name:"-80"}} shards:{{name:"80-"}}}} '
    f'cells:"{CELL}"'
)


class VtCombo:
    """vtcombo over one mysqld, with its data in ``folder``; it serves within seconds.

    :param version: of Vitess; see :func:`.install`.
    :param flags: additional flags for vtcombo, with the names of Vitess 23.
    """

    def __init__(self, folder: Path, version: str | None = None, flags: Sequence[str] = ()) -> None:
        programs = install(version)
        make_folder(folder)
        self.mysqld = MySQL(
            "mysqld", folder, programs,
            [f"vt_{MAIN}_0", f"vt_{SHARDED}_-80", f"vt_{SHARDED}_80-"],
        )  # fmt: skip
        ports = Ports(folder / "ports-by-name.json")
        self.port, self.grpc_port, self.web_port = ports["mysql"], ports["grpc"], ports["web"]
        self._schema = folder / "schema"
        for keyspace in (MAIN, SHARDED):
            make_folder(self._schema / keyspace)
            vschema = {"sharded": keyspace == SHARDED}
            (self._schema / keyspace / "vschema.json").write_text(json.dumps(vschema))
        arguments = [
            "--proto-topo", TOPOLOGY, "--schema-dir", str(self._schema),
            "--mycnf-server-id", "1", "--mycnf-socket-file", str(self.mysqld.socket),
            "--mycnf-mysql-port", str(self.mysqld.port), "--db-socket", str(self.mysqld.socket),
            "--service-map", "grpc-vtgateservice", "--mysql-auth-server-impl", "none",
            "--vschema-ddl-authorized-users", "%", "--mysql-server-bind-address", "127.0.0.1",
            "--mysql-server-port", str(self.port), "--grpc-port", str(self.grpc_port),
            "--grpc-bind-address", "127.0.0.1", "--bind-address", "127.0.0.1",
            "--port", str(self.web_port), *flags,
        ]  # fmt: skip
        self.vtcombo = Server(
            "vtcombo",
            folder,
            [str(programs.vitess / "vtcombo"), *spell(programs, arguments)],
            env={"VTDATAROOT": str(folder)},
        )
        self.servers = {server.name: server for server in (self.mysqld, self.vtcombo)}

    def url(self, keyspace: str = MAIN) -> str:
        """Return the SQLAlchemy URL of a keyspace."""
        return f"mysql+pymysql://user@127.0.0.1:{self.port}/{keyspace}"

    def grpc(self) -> str:
        """Return ``host:port`` for gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def start(self) -> None:
        """Start both processes and wait until vtcombo serves. Safe to repeat."""
        self.mysqld.start()
        self.mysqld.wait()
        self.vtcombo.start()
        shards = (f"{MAIN}:0", f"{SHARDED}:-80", f"{SHARDED}:80-")
        self.vtcombo.wait_until(lambda: all(_answers(self.port, shard) for shard in shards))

    def stop(self) -> None:
        """Stop both processes. Safe to repeat."""
        self.vtcombo.stop(2)
        self.mysqld.stop()

    def kill(self, name: str) -> None:
        """Kill one server with SIGKILL, as in a crash."""
        self.servers[name].kill()

    def restart(self, name: str) -> None:
        """Restart one server and wait until vtcombo serves."""
        self.servers[name].stop()
        self.start()
