"""Integrations with other libraries, one module for each."""
