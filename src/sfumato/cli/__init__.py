"""The command line. One file a verb: it parses, calls the library and prints; ``main`` turns errors into sentences."""

from sfumato.cli.main import main

__all__ = ["main"]
