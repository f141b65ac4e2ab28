"""Disks that are full, and files that are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """A disk that takes no more than ``size`` bytes a file: the kernel itself refuses the rest."""
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def damaged(data: bytes, how: str) -> bytes:
    """What is left of a file that was ``cut``, ``empty`` or ``garbled``."""
    middle = len(data) // 2
    return {"cut": data[:middle], "empty": b"", "garbled": data[:middle] + b"?????" + data[middle + 5 :]}[how]
