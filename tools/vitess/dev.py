"""vtcombo: the whole of Vitess in one process, the same as in ``vitess/vttestserver``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .cluster import CELL, MAIN, SHARDED, _answers
from .mysqld import MySQL
from .parts import install
from .process import Ports, Server, make_folder

TOPOLOGY = (
    f'keyspaces:{{name:"{MAIN}" shards:{{name:"0"}}}} '
    f'keyspaces:{{name:"{SHARDED}" shards:{{name:"-80"}} shards:{{name:"80-"}}}} '
    f'cells:"{CELL}"'
)


class Dev:
    """vtcombo over one mysqld, with its data in ``folder``; serves in seconds.

    :param flags: more flags for vtcombo.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        parts = install()
        make_folder(folder)
        self.mysqld = MySQL(
            "mysqld", folder, parts,
            [f"vt_{MAIN}_0", f"vt_{SHARDED}_-80", f"vt_{SHARDED}_80-"],
        )  # fmt: skip
        ports = Ports(folder / "ports-by-name.json")
        self.port, self.grpc_port, self.web_port = ports["mysql"], ports["grpc"], ports["web"]
        self._schema = folder / "schema"
        for keyspace in (MAIN, SHARDED):
            make_folder(self._schema / keyspace)
            vschema = {"sharded": keyspace == SHARDED}
            (self._schema / keyspace / "vschema.json").write_text(json.dumps(vschema))
        self.vtcombo = Server(
            "vtcombo", folder,
            [str(parts.vitess / "vtcombo"), "--proto_topo", TOPOLOGY,
             "--schema_dir", str(self._schema), "--logtostderr", "--bind-address", "127.0.0.1",
             "--mycnf_server_id", "1", "--mycnf_socket_file", str(self.mysqld.socket),
             "--mycnf_mysql_port", str(self.mysqld.port), "--db_socket", str(self.mysqld.socket),
             "--service_map", "grpc-vtgateservice", "--mysql_auth_server_impl", "none",
             "--vschema_ddl_authorized_users", "%", "--mysql_server_bind_address", "127.0.0.1",
             "--mysql_server_port", str(self.port), "--grpc_port", str(self.grpc_port),
             "--grpc_bind_address", "127.0.0.1", "--port", str(self.web_port), *flags],
            env={"VTDATAROOT": str(folder)},
        )  # fmt: skip
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
        """End both processes. Safe to repeat."""
        self.vtcombo.stop(2)
        self.mysqld.stop()

    def kill(self, part: str) -> None:
        """End one part with SIGKILL, as a crash would."""
        self.servers[part].kill()

    def restart(self, part: str) -> None:
        """Start one part again and wait until everything serves."""
        self.servers[part].stop()
        self.start()
