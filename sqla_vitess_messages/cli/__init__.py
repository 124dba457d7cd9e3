"""The command ``sqla-vitess-messages``."""
