"""What the tests share: a cache of their own, and the command line run inside this process."""

from __future__ import annotations

import atexit
import gzip
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

# Before anything reads it: tests must neither use nor fill the user's own cache.
os.environ["SFUMATO_CACHE"] = tempfile.mkdtemp(prefix="sfumato-tests-")
atexit.register(shutil.rmtree, os.environ["SFUMATO_CACHE"], ignore_errors=True)
# One thread here and in every process a test starts: sums of the same order, so "the same to the bit" can be asked for.
os.environ["OMP_NUM_THREADS"] = "1"


COLOURS = {"red": (230, 30, 30), "blue": (30, 30, 230), "green": (30, 200, 30)}


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error: exit status 2, nothing on standard output, and one line without a traceback."""
        assert self.status == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert all(line.startswith("sfumato: ") for line in lines), self.err
        assert len(lines) == 1, self.err
        return lines[0]


Command = Callable[..., Result]


@pytest.fixture
def sfumato(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``sfumato`` with these arguments."""
    from sfumato.cli import main

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(status, str(out), str(err))

    return run


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SFUMATO_CACHE", str(folder))
    return folder


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on digits. Not to be written to."""
    from sfumato import train

    folder = tmp_path_factory.mktemp("digits") / "run"
    train("digits", folder, steps=4, settings={"batch": "16"})
    return folder


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


@pytest.fixture
def small_fashion(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``fashion-mnist`` is the small stand-in, so that the tests are quick, and the same on every machine."""
    folder = write_fashion(tmp_path_factory.mktemp("fashion"))
    monkeypatch.setenv("SFUMATO_FASHION_MNIST", str(folder))
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def kept_cache(kept: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the tests with thousands of images."""
    monkeypatch.setenv("SFUMATO_CACHE", str(kept))
