"""Many images, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

Report = Callable[[int, int], None] | None  # called with (done, in all)


def slices(count: int, size: int, progress: Report = None) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``count``; ``progress`` is called after each with (done, count)."""
    for start in range(0, count, size):
        some = slice(start, min(start + size, count))
        yield some
        if progress is not None:
            progress(some.stop, count)
