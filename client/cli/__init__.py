"""The command `dnc`."""

from dnc_serve.client.cli.main import main

__all__ = ["main"]
