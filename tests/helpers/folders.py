"""Folders of images to train on."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import ImageSet, decode

COLOURS = {"red": (230, 30, 30), "blue": (30, 30, 230), "green": (30, 200, 30)}


def write_images(folder: Path, classes: tuple[str, ...], each: int, side: int = 8, channels: int = 1) -> Path:
    """``each`` noisy PNG files in a sub-folder for each class; classes () puts them into the folder itself."""
    numbers = np.random.default_rng(0)
    for name in classes or (".",):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = numbers.integers(0, 256, (side, side, channels), dtype=np.uint8)
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / name / f"{i}.png")
    return folder


def write_captioned(folder: Path, side: int = 8) -> Path:
    """24 plain squares, red, blue or green, and a ``metadata.jsonl`` that says which."""
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as lines:
        for i in range(24):
            name, colour = list(COLOURS.items())[i % 3]
            Image.new("RGB", (side, side), colour).save(folder / f"{i}.png")
            lines.write(json.dumps({"file_name": f"{i}.png", "text": f"a {name} square"}) + "\n")
    return folder


def write_fashion(folder: Path, train: int = 120, test: int = 60) -> Path:
    """A small stand-in for the four files of Fashion-MNIST: a bar a class, and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    for start, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = numbers.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 8] += 150
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{start}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def noise(seed: int, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def labels_of(data: ImageSet) -> np.ndarray:
    assert data.labels is not None
    return data.labels


def labelled(*sets: ImageSet) -> list[tuple[bytes, int]]:
    """The pixels of each image, as bytes, and its label."""
    return [(i.tobytes(), int(k)) for s in sets for i, k in zip(s.images, labels_of(s), strict=True)]


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one whenever images are decoded, not read from the cache."""
    calls: list[int] = []
    inner = decode.decode_all
    monkeypatch.setattr(decode, "decode_all", lambda *a, **k: calls.append(1) or inner(*a, **k))
    return calls


def write_folder(root: Path, count: int = 60, classes: tuple[str, ...] = ("cat", "dog")) -> dict[str, np.ndarray]:
    """PNGs by class; (pixels as bytes -> class) is what must come back."""
    for i in range(count):
        folder = root / classes[i % len(classes)] / ("deep" if i % 3 == 0 else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i)).save(folder / f"{i:03}.png")
    return {noise(i).tobytes(): classes[i % len(classes)] for i in range(count)}  # pyright: ignore[reportReturnType]
