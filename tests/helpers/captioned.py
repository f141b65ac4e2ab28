"""Captioned folders to test with, and the cache of these tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfumato.data import ImageSet

SHARED = Path(__file__).parents[3] / "shared" / "data" / "emoji_noto64"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data/emoji_noto64 is not there")


def colour(i: int) -> tuple[int, int, int]:
    """A colour of its own for each image: by it, what comes out is told apart."""
    return (i % 256, 3 * i % 256, 128)


def picture(folder: Path, name: str, i: int, side: int = 16) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour(i)).save(folder / name)


def pictures(folder: Path, count: int) -> list[str]:
    """images/0.png, images/1.png, ...: in a sub-folder, as is common, which must not become a class."""
    names = [f"images/{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        picture(folder, name, i)
    return names


def rows(names: Sequence[str], **columns: Sequence[Any]) -> list[dict[str, Any]]:
    given = {"text": [f"caption {i}" for i in range(len(names))], **columns}
    return [{"file_name": name} | {key: values[i] for key, values in given.items()} for i, name in enumerate(names)]


def write(folder: Path, lines: Sequence[Mapping[str, Any]], name: str = "metadata.jsonl") -> None:
    if name.endswith(".csv"):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    else:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def texts_by_image(*sets: ImageSet) -> dict[int, tuple[str, ...]]:
    """What came out, by the number of the image as its colour tells it."""
    got: dict[int, tuple[str, ...]] = {}
    for data in sets:
        assert data.captions is not None and data.labels is None and data.classes == ()
        got |= {int(i[0, 0, 0]): texts for i, texts in zip(data.images, data.captions, strict=True)}
    return got


def plain(count: int) -> dict[int, tuple[str, ...]]:
    return {i: (f"caption {i}",) for i in range(count)}
