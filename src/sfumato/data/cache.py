"""Decode once: uint8 images in a .npy file that later runs map into memory instead of decoding again.

An entry is two files, ``SLOT-IDENTITY.npy`` (the images) and ``.json`` (what else is known about them), the second
written last. A file that is missing, cut short or damaged is built again; a cache that cannot be written to costs only
the speed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfumato.core.errors import InputError
from sfumato.core.files import atomic, atomic_write
from sfumato.data.imageset import ImageSet

VERSION = 3  # raise when decoding changes, so that old entries are no longer found

_CHUNK = 256  # images handed over at once

Append = Callable[[np.ndarray], None]  # takes (n, H, W, C) uint8
Build = Callable[[Append], dict[str, Any]]  # hands over all images through Append, returns what else is to be kept


def cache_folder() -> Path:
    """Where decoded images are kept: $SFUMATO_CACHE, else the platform's folder for caches."""
    if chosen := os.environ.get("SFUMATO_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sfumato"
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sfumato"


def cached(slot: object, identity: object, build: Build) -> tuple[np.ndarray, dict[str, Any]]:
    """The images (N, H, W, C) uint8, as a read-only memory map, and the notes that ``build`` made of them.

    ``slot`` says what is decoded and how (path, size, fit), ``identity`` in which state (file sizes and times): an
    entry with another identity in the same slot is out of date and is removed. Both are JSON-ready. ``build`` runs only
    where no sound entry is found; it may run twice (the second time in memory, when the cache cannot be written to).
    """
    key = json.dumps([VERSION, identity], sort_keys=True)
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        base = folder / f"{_hash(json.dumps(slot, sort_keys=True))}-{_hash(key)}"
        with suppress(OSError, ValueError, KeyError, TypeError, EOFError):
            return _open(base)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        return _in_memory(build, error)
    build_failed = False

    def guarded(append: Append) -> dict[str, Any]:
        nonlocal build_failed
        try:
            return build(append)
        except InputError:  # the data's fault, not the cache's
            build_failed = True
            raise

    try:
        _write(base, guarded)
        images, notes = _open(base)
    except InputError as error:
        if build_failed:
            raise
        return _in_memory(build, error)
    _drop_outdated(base)
    return images, notes


def cached_set(data: Callable[[], ImageSet], slot: list[Any], identity: Any) -> ImageSet:
    """The set that ``data`` makes, its pixels from the cache where they are there already, with the same warnings."""

    def build(append: Append) -> dict[str, Any]:
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
            made = data()
        for start in range(0, len(made), _CHUNK):
            append(made.images[start : start + _CHUNK])
        labels = None if made.labels is None else made.labels.tolist()
        notes = {"labels": labels, "classes": made.classes, "name": made.name, "split": made.split}
        remarks = [str(warning.message) for warning in caught if warning.category is UserWarning]
        return notes | {"captions": made.captions, "warnings": remarks}

    images, notes = cached(slot, identity, build)
    for text in notes["warnings"]:
        warnings.warn(text, stacklevel=4)
    labels = None if notes["labels"] is None else np.array(notes["labels"], np.int64)
    captions = None if notes["captions"] is None else tuple(tuple(texts) for texts in notes["captions"])
    return ImageSet(images, labels, tuple(notes["classes"]), notes["name"], notes["split"], captions)


def file_identity(*paths: Path) -> list[list[Any]]:
    """Name, size and time of change of files: another state, another identity."""
    return [[path.name, (status := path.stat()).st_size, status.st_mtime_ns] for path in paths]


def _in_memory(build: Build, why: Exception) -> tuple[np.ndarray, dict[str, Any]]:
    warnings.warn(f"the cache of decoded images cannot be used ({why}): kept in memory this time", stacklevel=3)
    parts: list[np.ndarray] = []
    notes = build(parts.append)
    return np.concatenate(parts), notes


def _write(base: Path, build: Build) -> None:
    with atomic(base.with_suffix(".npy")) as temporary:
        with open(temporary, "r+b") as file:
            file.write(_header((0, 0, 0, 0)))
            count, shape = 0, (0, 0, 0)

            # Written, not mapped: on a full disk a write says so, where a memory map would kill the process.
            def append(images: np.ndarray) -> None:
                nonlocal count, shape
                file.write(np.ascontiguousarray(images).data)
                count, shape = count + len(images), images.shape[1:]

            notes = build(append)
            file.seek(0)
            file.write(_header((count, *shape)))
        with open(temporary, "rb") as file:
            digest = _sampled_digest(file)
    record = {"shape": [count, *shape], "digest": digest, "notes": notes, "notes_digest": _hash(json.dumps(notes))}
    atomic_write(base.with_suffix(".json"), json.dumps(record))


def _open(base: Path) -> tuple[np.ndarray, dict[str, Any]]:
    record = json.loads(base.with_suffix(".json").read_text("utf-8"))
    if _hash(json.dumps(record["notes"])) != record["notes_digest"]:
        raise ValueError("damaged")
    with open(base.with_suffix(".npy"), "rb") as file:
        if _sampled_digest(file) != record["digest"]:
            raise ValueError("damaged")
    images = np.load(base.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    if images.dtype != np.uint8 or list(images.shape) != record["shape"]:
        raise ValueError("damaged")
    return images, record["notes"]


def _drop_outdated(base: Path) -> None:
    for file in base.parent.glob(f"{base.name.split('-')[0]}-*"):
        if file.stem != base.name:
            with suppress(OSError):  # in use on Windows, or removed by another process: it may stay
                file.unlink()


def _header(shape: tuple[int, ...]) -> bytes:
    """A .npy header of 128 bytes whatever the shape, so that it can be set once the number of images is known."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def _sampled_digest(file: BinaryIO, pieces: int = 64, piece: int = 65_536) -> str:
    """Digest of the length and of evenly spread pieces: all of a small file, a fixed cost for a large one."""
    length = file.seek(0, os.SEEK_END)
    digest = hashlib.blake2b(str(length).encode(), digest_size=16)
    last = max(0, length - piece)
    for start in sorted({last * i // (pieces - 1) for i in range(pieces)}):
        file.seek(start)
        digest.update(file.read(piece))
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
