"""Image sets of the Hugging Face Hub, through the package ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.core.errors import InputError
from sfumato.data.captions import captioned
from sfumato.data.decode import Decoded, Entry, Listing, Notify, decode_cached
from sfumato.data.fit import Size

_TEXT_COLUMNS = ("text", "caption", "captions", "prompt")  # the first that is there
_TEST_NAMES = ("test", "validation", "valid", "val")


def decode_hub(source: str, size: Size | None, fit: str, progress: Notify | None = None) -> Decoded:
    """``hf:owner/name``: its first image column, and its first class-label column; where it has none, its captions.

    Captions: a column ``text``, ``caption``, ``captions`` or ``prompt`` of texts or lists of texts. Without a test (or
    validation) split a fixed tenth (captioned: a twentieth) of "train" is held out. Raises InputError when the package is not
    installed, the set cannot be fetched, or it holds no images.
    """
    name = source.removeprefix("hf:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"data {source!r} is not of the form hf:owner/name: give for example hf:ylecun/mnist")
    tables = _fetch(source, name)
    entries: list[Entry] = []
    classes: tuple[str, ...] = ()
    for split, table in tables:
        image_column, label_column = _columns(source, table)
        if label_column is not None:
            classes = tuple(table.features[label_column].names)
        entries += _entries(table, image_column, label_column, split)
    if not entries:
        raise InputError(f"data {source!r} has no rows: choose another set")
    uncaptioned: list[tuple[str, str]] = []
    if not classes and (texts := _texts([table for _, table in tables])):
        captions, uncaptioned = captioned({e.name: t for e, t in zip(entries, texts, strict=True)}, source)
        entries = [replace(e, captions=captions[e.name]) for e in entries if e.name in captions]
    identity = [[split, table._fingerprint, len(table)] for split, table in tables]
    decoded = decode_cached(Listing(source, ["hub", name], identity, entries, classes), size, fit, progress)
    return replace(decoded, uncaptioned=uncaptioned)


def _entries(table: Any, image_column: str, label_column: str | None, split: str | None) -> list[Entry]:
    import datasets  # pyright: ignore[reportMissingImports]

    labels = [None] * len(table) if label_column is None else list(table[label_column])
    undecoded = datasets.Image(decode=False)  # bytes: our own decoding is the one that survives damaged images
    raw = table.select_columns([image_column]).cast_column(image_column, undecoded)

    def fetch(i: int) -> Callable[[], bytes]:
        return lambda: _bytes(raw[i][image_column])

    return [
        Entry(f"{split or 'train'} row {i}", fetch(i), label if label is not None and label >= 0 else None, split)
        for i, label in enumerate(labels)
    ]


def _fetch(source: str, name: str) -> list[tuple[str | None, Any]]:
    """The tables by split; one of split None where the set has no test (or validation) split of its own."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        cure = "`pip install sfumato[hub]`, or give a folder or an .npz"
        raise InputError(f"data {source!r} needs the package 'datasets': {cure}") from error
    try:
        tables = datasets.load_dataset(name)
    except Exception as error:  # no network, no such set, no right to it, ...
        reason = str(error).strip().split("\n")[0][:160]
        raise InputError(f"data {source!r} cannot be fetched ({reason}): check the name and the network") from error
    if not isinstance(tables, Mapping):
        return [(None, tables)]
    test = next((key for key in _TEST_NAMES if key in tables), None)
    train = "train" if "train" in tables else next(iter(tables))
    if test is None or test == train:
        return [(None, tables[train])]
    return [("train", tables[train]), ("test", tables[test])]


def _columns(source: str, table: Any) -> tuple[str, str | None]:
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if not images:
        raise InputError(f"data {source!r} has no image column (it has {', '.join(kinds)}): choose a set of images")
    return images[0], labels[0] if labels else None


def _texts(tables: Sequence[Any]) -> list[list[str]] | None:
    """The texts of each row, from the first column of a known name that holds texts in all tables; None without one."""
    for column in _TEXT_COLUMNS:
        if all(column in table.features for table in tables):
            cells = [cell for table in tables for cell in table[column]]
            texts = [[] if cell is None else list(cell) if isinstance(cell, list | tuple) else [cell] for cell in cells]
            if all(isinstance(text, str) for row in texts for text in row):
                return texts
    return None


def _bytes(cell: Mapping[str, Any]) -> bytes:
    return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
