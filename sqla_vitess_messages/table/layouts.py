"""The layouts of a queue's table: its first columns, its primary key and its indexes.

=========== ==========================================================================
portable    The six columns of the original layout, then ``priority``. The default.
classic     Exactly the original layout, for Vitess 5 and older. Newer versions can't
            load it.
minimal     The table in the current documentation of Vitess: two indexes fewer to
            maintain, but neither the creation time nor the scheduled time.
=========== ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, SmallInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import DDLCompiler

from .options import Layout

__all__ = [
    "DEAD",
    "DEFAULT_PRIORITY",
    "LAYOUTS",
    "IndexSpec",
    "LayoutSpec",
    "TinyInteger",
    "column_settings",
    "make_columns",
]

DEFAULT_PRIORITY = 50
"""Vitess's own default. Lower numbers are delivered first."""


DEAD = 2**63 - 1
"""``time_next`` of a message that failed for good: it is never due."""


@dataclass(frozen=True)
class IndexSpec:
    """An index. A name in ``columns`` may end in `` desc``."""

    name: str
    columns: tuple[str, ...]
    unique: bool = False


@dataclass(frozen=True)
class LayoutSpec:
    """A layout: the names of the required columns in order, the primary key, and the indexes."""

    columns: tuple[str, ...]
    primary_key: tuple[str, ...]
    indexes: tuple[IndexSpec, ...]
    id_index: str = "id_idx"
    """The name on MySQL of the index that finds a row by its ``id``."""
    streams_all: bool = True
    """Whether ``vt_message_cols`` names every column. Vitess 5 doesn't know that option."""


_ORIGINAL = ("time_scheduled", "id", "time_next", "epoch", "time_created", "time_acked")
_ID_INDEX = IndexSpec("id_idx", ("id",), unique=True)
_NEXT_INDEX = IndexSpec("next_idx", ("time_next", "epoch"))
_POLLER_INDEX = IndexSpec("poller_idx", ("time_acked", "priority", "time_next desc"))

LAYOUTS: dict[Layout, LayoutSpec] = {
    "portable": LayoutSpec(
        (*_ORIGINAL, "priority"), ("time_scheduled", "id"), (_ID_INDEX, _NEXT_INDEX, _POLLER_INDEX)
    ),
    "classic": LayoutSpec(
        _ORIGINAL, ("time_scheduled", "id"), (_ID_INDEX, _NEXT_INDEX), streams_all=False
    ),
    "minimal": LayoutSpec(
        ("id", "priority", "epoch", "time_next", "time_acked"),
        ("id",),
        (_POLLER_INDEX,),
        id_index="PRIMARY",
    ),
}


class TinyInteger(SmallInteger):
    """MySQL's TINYINT, without importing its dialect, which would take 10 ms."""


@compiles(TinyInteger, "mysql")
@compiles(TinyInteger, "mariadb")
def _compile_tiny_integer(_type: TinyInteger, _compiler: DDLCompiler, **_kw: Any) -> str:
    return "TINYINT"


_SETTINGS: dict[str, dict[str, Any]] = {
    "time_scheduled": {"nullable": False},
    "id": {"nullable": False},
    "time_next": {"server_default": "0"},  # The poller never finds rows where it is NULL.
    "epoch": {"nullable": False, "server_default": "0"},
    "priority": {
        "type_": TinyInteger,
        "nullable": False,
        "server_default": str(DEFAULT_PRIORITY),
    },
}


def column_settings(name: str, layout: Layout) -> dict[str, Any]:
    """Return the arguments of a required column, except its name."""
    settings = {"type_": BigInteger, "nullable": True, **_SETTINGS.get(name, {})}
    if layout == "classic":
        # The original table declares neither defaults nor NOT NULL, which a key implies.
        settings |= {"nullable": True, "server_default": None}
    primary_key = name in LAYOUTS[layout].primary_key
    return {**settings, "primary_key": primary_key, "autoincrement": False}


def make_columns(layout: Layout) -> list[Column[Any]]:
    """Return the required columns of a layout, for a Table without a model."""
    return [Column(name, **column_settings(name, layout)) for name in LAYOUTS[layout].columns]
