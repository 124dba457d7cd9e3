"""What an option that names columns has in common with the others: ``shard_by``, ``unique_by`` …"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Table

from ..errors import InvalidQueue
from .layouts import LAYOUTS
from .options import OPTIONS_KEY, Layout, column_named

__all__ = ["add_missing_columns", "check_key", "check_payload_key", "columns_named"]


def columns_named(table: Table, names: Iterable[str] | None) -> list[Column[Any]]:
    """Return the columns that an option names.

    They exist: that was checked when the table became a queue.
    """
    found = (column_named(table, name) for name in names or ())
    return [column for column in found if column is not None]


def check_key(
    table: Table,
    option: str,
    names: Iterable[str],
    *,
    unfit: Collection[str],
    because: str,
    if_null: str,
) -> None:
    """Check that the columns that an option names can be a key.

    :param unfit: the names of columns that can't be part of it.
    :param because: why they can't.
    :param if_null: what would become of a message with NULL.
    :raises InvalidQueue: for a column that doesn't exist, is unfit, or may be NULL.
    """
    for name in names:
        found = column_named(table, name)
        if found is None:
            raise InvalidQueue(
                f"{option} of table {table.name!r}: it has no column {name!r}, only "
                f"{', '.join(column.name for column in table.columns)}"
            )
        if name in unfit:
            raise InvalidQueue(f"{option} of table {table.name!r}: {name!r} {because}")
        if found.nullable:
            raise InvalidQueue(
                f"{option} of table {table.name!r}: column {name!r} may be NULL, and {if_null}; "
                "declare it nullable=False"
            )


def check_payload_key(
    table: Table,
    option: str,
    names: Iterable[str],
    layout: Layout,
    own: Sequence[str],
    if_null: str,
) -> None:
    """Check that the columns of an option that adds columns to the queue can be a key.

    :param own: the names of the columns that the option adds.
    :param if_null: what would become of a message with NULL.
    :raises InvalidQueue: for one that doesn't exist, belongs to the queue, or may be NULL, and for
        a payload column whose name the queue needs.
    """
    _check_own_names(table, option, own)
    check_key(
        table, option, names,
        unfit=(*LAYOUTS[layout].columns, *own),
        because="belongs to the queue; name payload columns",
        if_null=if_null,
    )  # fmt: skip


def _check_own_names(table: Table, option: str, names: Sequence[str]) -> None:
    """Check that no payload column has the name of one that an option adds to the queue.

    :raises InvalidQueue: for one that has.
    """
    for name in names:
        clash = next((c for c in table.columns if name in (c.name.lower(), c.key)), None)
        if clash is not None and OPTIONS_KEY not in clash.info:
            raise InvalidQueue(
                f"column {clash.name!r} of table {table.name!r}: a queue with {option} has a "
                f"column {name!r} of its own; choose another name"
            )


def add_missing_columns(table: Table, columns: Iterable[Column[Any]]) -> None:
    """Add columns of the queue's own, unless the table has them, as a copy does."""
    for new in columns:
        if column_named(table, new.name) is None:
            table.append_column(new)
