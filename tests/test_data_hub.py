"""Data sets of the Hub: the package is replaced by a small one with the parts of its interface that are used."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.folders import labels_of, noise
from sfumato.core.errors import InputError
from sfumato.data import check, load

pytestmark = pytest.mark.usefixtures("own_cache")


class Table:
    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None) -> None:
        self.rows, self.features, self._fingerprint = rows, dict[str, Any](img=Image_()), f"f{len(rows)}"
        if names is not None:
            self.features["label"] = type("ClassLabel", (), {"names": names})()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def select_columns(self, columns: list[str]) -> Table:
        return self

    def cast_column(self, column: str, feature: Any) -> Table:
        assert feature.decode is False
        return self


class Image_:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


Image_.__name__ = "Image"


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(seed, 28, 28)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    def offer(what: Any) -> None:
        module: Any = types.ModuleType("datasets")
        module.Image = Image_

        def load_dataset(name: str) -> Any:
            if isinstance(what, Exception):
                raise what
            return what

        module.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)

    yield offer


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [{"img": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(start, start + count)]


def test_hub_set_with_splits(hub: Callable[[Any], None]) -> None:
    hub({"train": Table(rows(0, 7), ["a", "b"]), "test": Table(rows(100, 4), ["a", "b"])})
    train, test = load("hf:some/set"), load("hf:some/set", split="test")
    assert (len(train), len(test), train.size, train.classes) == (7, 4, (28, 28), ("a", "b"))
    got = {i.tobytes(): k for i, k in zip(test.images, labels_of(test).tolist(), strict=True)}
    assert got == {noise(i, 28, 28).tobytes(): i % 2 for i in range(100, 104)}
    assert check("hf:some/set").splits == {"train": 7, "test": 4}


def test_hub_set_without_splits_or_labels_and_with_a_bad_row(hub: Callable[[Any], None]) -> None:
    hub({"train": Table([*rows(0, 3), {"img": {"bytes": b"no", "path": None}}], None)})
    with pytest.warns(UserWarning, match="skipped 1 of 4 images: train row 3"):
        train = load("hf:some/set", size=32)
    assert len(train) == 3 and train.labels is None and train.size == (32, 32)


def test_hub_failures_are_one_sentence(
    hub: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(ConnectionError("no route to host\nand much more"))
    with pytest.raises(InputError, match=r"'hf:some/set' cannot be fetched \(no route to host\)"):
        load("hf:some/set")
    table = Table(rows(0, 1), None)
    table.features = {"text": object()}
    hub(table)
    with pytest.raises(InputError, match="no image column"):
        load("hf:some/set")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if not installed
    with pytest.raises(InputError, match=r"pip install sfumato\[hub\]"):
        load("hf:some/set")
    monkeypatch.delenv("SFUMATO_CIFAR10", raising=False)
    with pytest.raises(InputError, match="SFUMATO_CIFAR10"):
        load("cifar10")
    from sfumato.data import builtin

    monkeypatch.setattr(builtin, "DEBIAN", tmp_path)
    monkeypatch.delenv("SFUMATO_FASHION_MNIST", raising=False)
    with pytest.raises(InputError, match="install the Debian package dataset-fashion-mnist"):
        load("fashion-mnist")
