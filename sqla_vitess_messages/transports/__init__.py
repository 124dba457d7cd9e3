"""How messages come from the database: see :class:`~.base.Transport`."""

from .base import Transport
from .factory import TransportName, make_transport

__all__ = ["Transport", "TransportName", "make_transport"]
