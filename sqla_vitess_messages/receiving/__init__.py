"""Receiving messages and running handlers, written once for threads and asyncio."""
