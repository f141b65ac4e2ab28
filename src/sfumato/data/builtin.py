"""The sets that are there by name."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.data.cache import cached_set, file_identity
from sfumato.data.emoji_font import draw_emoji, emoji_font, emoji_versions
from sfumato.data.hub import decode_hub
from sfumato.data.imageset import ImageSet
from sfumato.data.npz import load_npz

SOURCES: Registry[Callable[[str], ImageSet]] = Registry("data source")
"""Built-in sets by name: functions from a split ("train" or "test") to its ImageSet at native size."""

CLOTHES = Path(__file__).parents[1] / "packaged" / "clothes" / "clothes.npz"  # by tools/make_clothes.py
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts its files
ARTICLES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_FASHION_ON_HUB = "hf:zalando-datasets/fashion_mnist"
_CIFAR10_ON_HUB = "hf:uoft-cs/cifar10"


@SOURCES.add("digits")
def digits(split: str) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits: 8x8, grey, 10 classes; a fixed 1,497 for training and 300 for test."""
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    images = np.rint(raw["images"] * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1), given as 0..16
    order = np.random.RandomState(0).permutation(len(images))  # this generator's numbers never change between versions
    chosen = order[:1497] if split == "train" else order[1497:]
    labels = raw["target"].astype(np.int64)[chosen]
    return ImageSet(images[chosen], labels, tuple(str(name) for name in raw["target_names"]), "digits", split)


@SOURCES.add("clothes")
def clothes(split: str) -> ImageSet:
    """10,000 + 2,000 images of Fashion-MNIST, as many of each class, in a file of the package: always there."""
    if not CLOTHES.is_file():
        raise InputError("this installation lacks the built-in set 'clothes': install sfumato again")
    return replace(load_npz(CLOTHES, split=split), name="clothes")


@SOURCES.add("fashion-mnist")
def fashion_mnist(split: str) -> ImageSet:
    """Zalando's 60,000 + 10,000 articles of clothing: 28x28, grey, 10 classes (Xiao, Rasul and Vollgraf 2017).

    Read from the four IDX files in the folder that $SFUMATO_FASHION_MNIST names, or of Debian's package, else from
    the Hub.
    """
    chosen = os.environ.get("SFUMATO_FASHION_MNIST")
    folder = Path(chosen).expanduser() if chosen else DEBIAN
    start = "train" if split == "train" else "t10k"
    files = [folder / f"{start}-images-idx3-ubyte.gz", folder / f"{start}-labels-idx1-ubyte.gz"]
    if missing := [file for file in files if not file.is_file()]:
        if chosen:
            cure = "name the folder of the four .gz files"
            raise InputError(f"SFUMATO_FASHION_MNIST: {str(missing[0])!r} is missing; {cure}")
        hint = (
            "install the Debian package dataset-fashion-mnist, or `pip install sfumato[hub]` with a network, or take "
            "'clothes', a sixth of it"
        )
        data = _from_hub(_FASHION_ON_HUB, split, "fashion-mnist", hint)
        return replace(data, classes=ARTICLES)

    def read() -> ImageSet:
        images, labels = read_idx(files[0]), read_idx(files[1])
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise InputError(f"{str(files[0])!r} and {files[1].name!r} do not belong together: get the four files anew")
        return ImageSet(images[..., None], labels.astype(np.int64), ARTICLES, "fashion-mnist", split)

    return cached_set(read, ["fashion-mnist", str(folder), split], file_identity(*files))


@SOURCES.add("cifar10")
def cifar10(split: str) -> ImageSet:
    """50,000 + 10,000 photographs: 32x32, colour, 10 classes (Krizhevsky 2009).

    Read from the .npz that $SFUMATO_CIFAR10 names (x_train, y_train, x_test, y_test, classes), else from the Hub.
    """
    if chosen := os.environ.get("SFUMATO_CIFAR10"):
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise InputError(f"SFUMATO_CIFAR10: {chosen!r} does not exist; name an .npz with x_train, y_train, ...")
        return replace(load_npz(path, split=split), name="cifar10")
    hint = "name an .npz in SFUMATO_CIFAR10, or `pip install sfumato[hub]` with a network"
    return _from_hub(_CIFAR10_ON_HUB, split, "cifar10", hint)


@SOURCES.add("emoji")
def emoji(split: str) -> ImageSet:
    """About 1,900 emoji of the font NotoColorEmoji.ttf: 64x64, colour on white, captioned with their names.

    The font is found in the system's font folders, or named by $SFUMATO_EMOJI_FONT; names are those of the package
    ``emoji`` where it is installed.
    """
    font = emoji_font()
    identity = [file_identity(font), *emoji_versions()]
    return cached_set(lambda: draw_emoji(font, split), ["emoji", str(font), split], identity)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of one gzipped IDX file (LeCun's format); InputError when it is damaged."""
    try:
        data = gzip.decompress(path.read_bytes())
        zeros, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if (zeros, kind) != (0, 8):
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): get the file anew") from error


def _from_hub(source: str, split: str, name: str, hint: str) -> ImageSet:
    try:
        return replace(decode_hub(source, None, "crop").to_set(split), name=name)
    except InputError as error:
        raise InputError(f"{name} is not on this machine: {hint} ({error})") from error
