"""What is in a folder and below it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sfumato.data.decode import SUFFIXES


def listed(folder: Path, suffixes: Collection[str] | None = SUFFIXES) -> tuple[list[Path], list[Path]]:
    """(sub-folders, files with one of ``suffixes``, None: any), sorted.

    Hidden ones and what macOS puts into archives are left out. Raises OSError.
    """
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif suffixes is None or os.path.splitext(entry.name)[1].lower() in suffixes:
                files.append(Path(entry.path))
    return sorted(folders, key=lambda p: natural(p.name)), sorted(files)


def walk(folder: Path, remarks: list[str], suffixes: Collection[str] | None = SUFFIXES) -> Iterator[Path]:
    """All files below, each real folder once, so that a link to a folder above does not lead round for ever.

    A folder that cannot be opened is left out, with a sentence in ``remarks``.
    """
    seen: set[tuple[int, int]] = set()

    def below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above or here in seen:
                return
            folders, files = listed(folder, suffixes)
        except OSError as error:
            remarks.append(f"folder {folder.name!r} cannot be opened ({error.strerror}) and is left out")
            return
        if os.name == "posix":  # elsewhere the numbers may all be zero
            seen.add(here)
        yield from files
        for child in folders:
            yield from below(child, (*above, here))

    yield from below(folder, ())


def relative(file: Path, root: Path) -> str:
    """The path below ``root``, with / on every system."""
    return file.relative_to(root).as_posix()


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key: "class10" after "class9"."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts] + [(2, 0, name)]


def some(names: Sequence[str]) -> str:
    """The first five, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
