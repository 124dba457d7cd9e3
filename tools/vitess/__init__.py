"""A real Vitess, without Docker: get its parts, start it, break it, stop it.

``python -m tools.vitess --help`` is the command; the tests use the classes directly.
Nothing here needs root, and nothing outside the cache and the data folder is written.
"""

from .cluster import Cluster
from .dev import Dev
from .mariadb import MariaDB
from .mysqld import MySQL
from .parts import MissingTool, install
from .process import temporary

__all__ = ["Cluster", "Dev", "MariaDB", "MissingTool", "MySQL", "install", "temporary"]
