"""The `promptrollout` command, also usable as `kubectl promptrollout`."""

from promptrollout.cli.main import main

__all__ = ["main"]
