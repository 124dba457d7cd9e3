"""Import gRPC with its own handling of forks turned off, unless the user has decided.

That handling is off in gRPC's Python code by default, but on in its core: there it crashed children
at random, if the parent had a stream in an event loop (grpcio 1.85).
"""

from __future__ import annotations

import os

from ...extras import needs_extra

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

with needs_extra("grpc", "grpc", "google"):
    import google.protobuf  # noqa: F401  # For the generated modules.
    import grpc  # It reads the variable.
    import grpc.aio

__all__ = ["grpc"]
