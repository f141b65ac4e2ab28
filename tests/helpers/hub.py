"""As much of the package ``datasets`` as is used, in its place."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image


class ImageColumn:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


ImageColumn.__name__ = "Image"


class Table:
    """A ``datasets.Dataset`` of these columns; ``image`` holds images, ``label`` numbers of ``classes``."""

    def __init__(self, classes: Sequence[str] = (), **columns: list[Any]) -> None:
        self.columns, self._fingerprint = columns, str({name: len(cells) for name, cells in columns.items()})
        self.features: dict[str, Any] = {name: ImageColumn() if name == "image" else object() for name in columns}
        if classes:
            self.features["label"] = type("ClassLabel", (), {"names": classes})()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {n: column[key] for n, column in self.columns.items()}

    def select_columns(self, columns: list[str]) -> Table:
        return self

    def cast_column(self, column: str, feature: Any) -> Table:
        assert feature.decode is False
        return self


def offer(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    """``load_dataset`` returns ``what``, or raises it where it is an exception."""

    def load_dataset(name: str) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    module: Any = types.ModuleType("datasets")
    module.Image, module.load_dataset = ImageColumn, load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def cell(image: Image.Image) -> dict[str, Any]:
    """The image as a cell of a column that is not decoded."""
    image.save(out := io.BytesIO(), format="PNG")
    return {"bytes": out.getvalue(), "path": None}
