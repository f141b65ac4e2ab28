"""What the tests share: a cache of their own, and the command line run inside this process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("helpers")  # before anything imports them

from helpers.commands import Command, Result  # noqa: E402

# Before anything reads it: tests must neither use nor fill the user's own cache.
os.environ["SFUMATO_CACHE"] = tempfile.mkdtemp(prefix="sfumato-tests-")
atexit.register(shutil.rmtree, os.environ["SFUMATO_CACHE"], ignore_errors=True)
# One thread here and in every process a test starts: sums of the same order, so "the same to the bit" can be asked for.
os.environ["OMP_NUM_THREADS"] = "1"


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


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny language model. Not to be written to."""
    pytest.importorskip("transformers", reason="texts need transformers")
    from helpers.text_models import save_bert

    return str(save_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def small_fashion(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``fashion-mnist`` is the small stand-in, so that the tests are quick, and the same on every machine."""
    from helpers.folders import write_fashion

    folder = write_fashion(tmp_path_factory.mktemp("fashion"))
    monkeypatch.setenv("SFUMATO_FASHION_MNIST", str(folder))
    return folder


@pytest.fixture
def small_clothes(small_fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``clothes`` is the same small stand-in."""
    from dataclasses import replace

    from sfumato.data import SOURCES

    monkeypatch.setitem(SOURCES, "clothes", lambda split: replace(SOURCES["fashion-mnist"](split), name="clothes"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def kept_cache(kept: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the tests with thousands of images."""
    monkeypatch.setenv("SFUMATO_CACHE", str(kept))
