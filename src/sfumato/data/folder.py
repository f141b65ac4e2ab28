"""A folder of image files: class sub-folders, captions, ready-made splits, or just images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sfumato.core.errors import InputError
from sfumato.data.captions import Captions, find_captions
from sfumato.data.decode import Decoded, Entry, Listing, Notify, decode_cached
from sfumato.data.fit import Size
from sfumato.data.listing import listed, natural, relative, some, walk

_TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is the test split


@dataclass
class Scan:
    """What a folder holds, before anything is decoded: images, class names, and remarks about what is left out."""

    entries: list[Entry] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    uncaptioned: list[tuple[str, str]] = field(default_factory=list)  # (name, why): left out of a captioned folder
    remarks: list[str] = field(default_factory=list)


def decode_folder(path: Path, size: Size | None, fit: str, progress: Notify | None = None) -> Decoded:
    """The images below ``path``: captioned, or labelled by its sub-folders; split by ``train`` and ``test`` (or ``val``).

    Classes without a readable image are left out. Raises InputError when none can be read.
    """
    scan = scan_folder(path)
    slot, identity = ["folder", str(path.resolve())], _identity(scan.entries)
    decoded = decode_cached(Listing(str(path), slot, identity, scan.entries, scan.classes), size, fit, progress)
    kept = [i for i in range(len(scan.classes)) if (decoded.labels == i).any()]
    bare = [name for i, name in enumerate(scan.classes) if i not in kept]
    remarks = scan.remarks + [f"class {name!r} has no readable image and is left out" for name in bare]
    renumber = np.full(len(scan.classes) + 1, -1, np.int64)  # the last entry is for label -1
    renumber[kept] = np.arange(len(kept))
    classes = tuple(scan.classes[i] for i in kept)
    labels = renumber[decoded.labels]
    return replace(decoded, labels=labels, classes=classes, uncaptioned=scan.uncaptioned, remarks=remarks)


def scan_folder(path: Path) -> Scan:
    """List ``path`` and read its captions; InputError when it cannot be listed, holds no image, or its captions fail."""
    scan = Scan()
    try:
        folders, files = listed(path)
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
            scan.remarks.append(f"beside its splits, {some(unused)} are not used")
        parts = [(split if test else None, folder) for split, folder in parts]
    else:
        parts = [(None, path)]
    captions = find_captions(path, list(walk(path, [], None)), scan.remarks)
    for split, folder in parts:
        if captions is None:
            _scan_split(scan, path, folder, split)
        else:
            _scan_captioned(scan, path, folder, split, captions)
    if not scan.entries:
        cure = "put image files (png, jpg, webp, ...) into it, or into one sub-folder a class"
        raise InputError(f"data folder {str(path)!r} holds no image: {cure}")
    return scan


def _scan_split(scan: Scan, root: Path, folder: Path, split: str | None) -> None:
    folders, files = listed(folder)
    found = {f.name: list(walk(f, scan.remarks)) for f in folders}
    for name in sorted(found, key=natural):
        if not found[name]:
            scan.remarks.append(f"sub-folder {name!r} holds no image and is left out")
            continue
        if name not in scan.classes:
            scan.classes.append(name)
        label = scan.classes.index(name)
        scan.entries += [Entry(relative(file, root), file, label, split) for file in found[name]]
    if not any(found.values()):
        scan.entries += [Entry(relative(file, root), file, None, split) for file in files]
    elif files:
        scan.remarks.append(f"images beside the class folders are not used: {some([file.name for file in files])}")


def _scan_captioned(scan: Scan, root: Path, folder: Path, split: str | None, captions: Captions) -> None:
    for file in walk(folder, scan.remarks):
        if file in captions.texts:
            scan.entries.append(Entry(relative(file, root), file, None, split, captions.texts[file]))
    scan.uncaptioned += [(relative(file, root), why) for file, why in captions.without if file.is_relative_to(folder)]


def _identity(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        assert isinstance(entry.source, Path)
        try:
            status = entry.source.stat()
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = None
        # The texts themselves are not kept with the pixels: new ones need no decoding.
        known = (entry.name, entry.label, entry.split, entry.captions is None, state)
        digest.update(repr(known).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
