"""Autogenerate's comparison of queues. It replaces what Alembic's own comparison found about them.

Alembic sees a queue as a table with a comment, indexes and columns of its own, and compares those
by their text. Here they become operations on queues, in an order in which the table is a working
queue after every step: a malformed message table stops schema reloading for a whole Vitess tablet.

Each module contains one comparator, which its ``setup()`` registers, as in Alembic's own
``autogenerate/compare``. Those of a table's indexes, layout, options and vindexes run once for each
queue that the database has, after Alembic's own, and add their operations to those that Alembic
collects for the table. Finally :mod:`.queues` replaces the operations that create and drop tables,
and :mod:`.order` puts the operations on each table in order.
"""

from __future__ import annotations

__all__: list[str] = []
