"""How messages come from the database; see :class:`~.base.Transport`."""
