"""A real Vitess without Docker: download and build its programs, start, kill and stop it.

``python -m tools.vitess --help`` lists the commands; the tests use the classes directly.
Nothing here needs root, and nothing is written outside the cache and the data folder.
"""

from .cluster import Cluster
from .downloads import MissingTool, install
from .mariadb import MariaDB
from .mysqld import MySQL
from .process import temporary
from .vtcombo import VtCombo

__all__ = ["Cluster", "MariaDB", "MissingTool", "MySQL", "VtCombo", "install", "temporary"]
