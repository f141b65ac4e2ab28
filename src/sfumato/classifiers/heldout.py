"""Images to train on, and others to measure on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfumato.core.errors import InputError
from sfumato.data import SOURCES, ImageSet, load
from sfumato.data.folder import scan_folder

_ENOUGH = 50  # images: of fewer, a tenth would say nothing


class Divided(NamedTuple):
    """Images to train on, others to measure on, and in words which the latter are."""

    train: ImageSet
    test: ImageSet
    origin: str


def training_and_test(
    source: str | Path | ImageSet,
    test: ImageSet | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
) -> Divided:
    """Divide a source: its own test split where it has one; else a fixed tenth that is left out of training; of fewer than 50
    images, the training images themselves.
    """
    if isinstance(source, ImageSet):
        source = load(source, size=size, fit=fit)
        if test is not None:
            return Divided(source, load(test, size=source.size, fit=fit), "the test images that were given")
        return _divided(source)
    if test is not None:
        raise InputError("test images were given beside a source that has its own: give both as ImageSets")
    train = load(source, size=size, fit=fit)
    tested = load(source, split="test", size=train.size, fit=fit)
    if tested.fingerprint() == train.fingerprint():
        return Divided(train, tested, "the training images themselves (too few to hold some out)")
    return Divided(train, tested, _origin(source))


def _origin(source: str | Path) -> str:
    """Where the test images of a source come from, in words."""
    text = str(source)
    if text.startswith("hf:"):
        return "its test split, or a tenth held out where it has none"
    path, own = Path(text).expanduser(), text in SOURCES
    if not own and path.is_dir():
        own = any(entry.split == "test" for entry in scan_folder(path).entries)
    elif not own:
        with np.load(path, allow_pickle=False) as file:
            own = "x_test" in file.files
    return "its test split" if own else "a tenth held out"


def _divided(data: ImageSet) -> Divided:
    if len(data) < _ENOUGH:
        return Divided(data, data, "the training images themselves (too few to hold some out)")
    order = np.random.RandomState(0).permutation(len(data))  # this generator's numbers never change between versions
    count = len(data) // 10
    train, test = _part(data, np.sort(order[count:]), "train"), _part(data, np.sort(order[:count]), "test")
    return Divided(train, test, "a tenth held out")


def _part(data: ImageSet, rows: np.ndarray, split: str) -> ImageSet:
    labels = None if data.labels is None else data.labels[rows]
    return replace(data, images=np.asarray(data.images[rows]), labels=labels, split=split)
