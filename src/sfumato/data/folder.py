"""A folder of image files: class sub-folders, ready-made splits, or just images."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sfumato.data.decode import SUFFIXES, Decoded, Entry, Progress, decode_cached
from sfumato.data.fit import Size
from sfumato.data.imageset import ImageSet
from sfumato.errors import InputError

_TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is the test split


@dataclass
class Scan:
    """What a folder holds, before anything is decoded: images, class names, and remarks about what is left out."""

    entries: list[Entry] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def load_folder(
    path: Path, *, split: str = "train", size: Size | None = None, fit: str = "crop", progress: Progress | None = None
) -> ImageSet:
    """The images below ``path``: labelled by its sub-folders, split by its ``train`` and ``test`` (or ``val``) folders.

    Raises InputError when none can be read. One warning names the images left out, one each what else is not used.
    """
    return decode_folder(path, size, fit, progress).to_set(path.resolve().name, split, str(path))


def decode_folder(path: Path, size: Size | None, fit: str, progress: Progress | None = None) -> Decoded:
    """All images below ``path``; classes without a readable image are left out. InputError when none can be read."""
    scan = scan_folder(path)
    slot, identity = ["folder", str(path.resolve())], _identity(scan.entries)
    decoded = decode_cached(str(path), slot, identity, scan.entries, scan.classes, size, fit, progress)
    kept = [i for i in range(len(scan.classes)) if (decoded.labels == i).any()]
    bare = [name for i, name in enumerate(scan.classes) if i not in kept]
    remarks = scan.remarks + [f"class {name!r} has no readable image and is left out" for name in bare]
    renumber = np.full(len(scan.classes) + 1, -1, np.int64)  # the last entry is for label -1
    renumber[kept] = np.arange(len(kept))
    classes = tuple(scan.classes[i] for i in kept)
    return replace(decoded, labels=renumber[decoded.labels], classes=classes, remarks=remarks)


def scan_folder(path: Path) -> Scan:
    """List ``path`` without opening a file; InputError when it cannot be listed or holds no image file."""
    scan = Scan()
    try:
        folders, files = _list(path)
    except OSError as error:
        raise InputError(f"data folder {str(path)!r} cannot be opened ({error.strerror}): choose another") from error
    lower = {folder.name.lower(): folder for folder in folders}
    test = next((name for name in _TEST_NAMES if name in lower), None)
    if "train" in lower and (test is not None or len(folders) == 1):
        # With "train" alone its folders are the classes, and the test split is drawn from them.
        parts = [("train", lower["train"])] + ([("test", lower[test])] if test else [])
        used = {folder for _, folder in parts}
        unused = [folder.name for folder in folders if folder not in used] + [file.name for file in files]
        if unused:
            scan.remarks.append(f"beside its splits, {_some(unused)} are not used")
        for split, folder in parts:
            _scan_split(scan, path, folder, split if test else None)
    else:
        _scan_split(scan, path, path, None)
    if not scan.entries:
        raise InputError(
            f"data folder {str(path)!r} holds no image: put image files (png, jpg, webp, ...) into it, "
            "or into one sub-folder a class"
        )
    return scan


def _scan_split(scan: Scan, root: Path, folder: Path, split: str | None) -> None:
    folders, files = _list(folder)
    found: dict[str, list[Path]] = {f.name: list(_walk(f, (), set(), scan.remarks)) for f in folders}
    for name in sorted(found, key=_natural):
        if not found[name]:
            scan.remarks.append(f"sub-folder {name!r} holds no image and is left out")
            continue
        if name not in scan.classes:
            scan.classes.append(name)
        label = scan.classes.index(name)
        scan.entries += [Entry(_relative(file, root), file, label, split) for file in found[name]]
    if not any(found.values()):
        scan.entries += [Entry(_relative(file, root), file, None, split) for file in files]
    elif files:
        scan.remarks.append(f"images beside the class folders are not used: {_some([file.name for file in files])}")


def _walk(
    folder: Path, above: tuple[tuple[int, int], ...], seen: set[tuple[int, int]], remarks: list[str]
) -> Iterator[Path]:
    """All image files below, each real folder once, so that a link to a folder above does not lead round for ever."""
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above or here in seen:
            return
        folders, files = _list(folder)
    except OSError as error:
        remarks.append(f"folder {folder.name!r} cannot be opened ({error.strerror}) and is left out")
        return
    if os.name == "posix":  # elsewhere the numbers may all be zero
        seen.add(here)
    yield from files
    for child in folders:
        yield from _walk(child, (*above, here), seen, remarks)


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """(sub-folders, image files by suffix), sorted; hidden ones and what macOS puts into archives left out."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                files.append(Path(entry.path))
    return sorted(folders, key=lambda p: _natural(p.name)), sorted(files)


def _identity(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        assert isinstance(entry.source, Path)
        try:
            status = entry.source.stat()
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = None
        digest.update(repr((entry.name, entry.label, entry.split, state)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key: "class10" after "class9"."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts] + [(2, 0, name)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
