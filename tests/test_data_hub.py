"""Data sets of the Hub; in the place of its package stands a small one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from helpers.folders import labelled, noise
from helpers.hub import Table, cell, offer
from sfumato.core.errors import InputError
from sfumato.data import check, load

pytestmark = pytest.mark.usefixtures("own_cache")


def table(start: int, count: int, classes: Sequence[str] = ()) -> Table:
    images = [cell(Image.fromarray(noise(i, 28, 28))) for i in range(start, start + count)]
    return Table(classes, image=images, label=[i % 2 for i in range(count)])


def test_hub_set_with_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, {"train": table(0, 7, "ab"), "test": table(100, 4, "ab")})
    train, test = load("hf:some/set"), load("hf:some/set", split="test")
    assert (len(train), len(test), train.size, train.classes) == (7, 4, (28, 28), ("a", "b"))
    assert dict(labelled(test)) == {noise(i, 28, 28).tobytes(): i % 2 for i in range(100, 104)}
    assert check("hf:some/set").splits == {"train": 7, "test": 4}


def test_hub_set_without_splits_or_labels_and_with_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, {"train": Table(image=[*table(0, 3)["image"], {"bytes": b"no", "path": None}])})
    with pytest.warns(UserWarning, match="skipped 1 of 4 images: train row 3"):
        train = load("hf:some/set", size=32)
    assert len(train) == 3 and train.labels is None and train.size == (32, 32)


def test_hub_failures_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ConnectionError("no route to host\nand much more"))
    with pytest.raises(InputError, match=r"'hf:some/set' cannot be fetched \(no route to host\)"):
        load("hf:some/set")
    offer(monkeypatch, Table(text=["no image"]))
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
