"""The version, from here into the package, its pages and its wheel."""

__version__ = "0.1.0"
