"""``sfumato classifier``: train, go on, evaluate, and what it says."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import Command
from helpers.folders import write_images
from sfumato.classifiers.networks import NETWORKS

RUN = "import sys; from sfumato.cli import main; sys.exit(main())"


def test_digits_are_learned_in_seconds(sfumato: Command, inside: Path):
    made = sfumato(
        "classifier", "train", "--data", "digits", "--out", "a clf", "--epochs", "8", "--device", "cpu"
    ).done()
    assert made.err.startswith("sfumato: training a clf for 8 epochs")
    first, second, third = made.out.splitlines()
    assert first.startswith("trained a clf (convnet): 8.0 epochs")
    assert "95% interval" in second and second.endswith("(300 images: its test split)")
    described = json.loads((inside / "a clf" / "config.json").read_text())
    assert described["test"]["accuracy"] >= 0.95
    assert described["labels"] == [str(i) for i in range(10)] and not described["training"]["flip"]
    # The command that it names measures the same.
    result = json.loads(sfumato(*shlex.split(third.removeprefix("next: sfumato ")), "--json").done().out)
    assert result["accuracy"] == described["test"]["accuracy"] and result["low"] < result["accuracy"] < result["high"]
    assert sum(each["count"] for each in result["classes"].values()) == 300
    shown = sfumato("classifier", "evaluate", "a clf", "--data", "digits").out.splitlines()
    assert shown[0].startswith("a clf on digits: accuracy ") and len(shown) == 11
    # The same again: there is nothing left to do. Other data under that name is refused.
    again = sfumato("classifier", "train", "--data", "digits", "--out", "a clf", "--epochs", "8", "--device", "cpu")
    assert again.status == 0 and "has had its 8 epochs already" in again.out
    other = sfumato("classifier", "train", "--data", "digits", "--size", "16", "--out", "a clf", "--epochs", "8")
    assert "holds another run (" in other.sentence


def test_an_interrupted_training_goes_on(sfumato: Command, inside: Path):
    words = ["classifier", "train", "--data", "digits", "--out", "clf", "--epochs"]
    with subprocess.Popen([sys.executable, "-c", RUN, *words, "4000"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "training clf" in process.stderr.readline()
            time.sleep(2)
            for _ in range(4):  # Python loses a signal that comes while some modules load
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=25)
                    break
            _, err = process.communicate(timeout=25)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    assert "re-run the command to resume" in err
    assert not (inside / "clf" / "model.safetensors").exists()
    made = sfumato(*words, "1", "--json").done()
    assert json.loads(made.out)["network"] == "convnet"


def test_a_folder_with_its_own_test_images(sfumato: Command, inside: Path):
    write_images(inside / "data" / "train", ("a", "b"), 10, channels=3)
    write_images(inside / "data" / "test", ("a", "b"), 3, channels=3)
    options = "--epochs 1 --flip --shift 2 --size 12 --json"
    result = json.loads(sfumato("classifier", "train", "--data", "data", "--out", "clf", *options.split()).done().out)
    assert result["test"]["data"] == "its test split" and result["test"]["count"] == 6
    assert result["network"] == "resnet" and result["size"] == [12, 12]
    assert result["training"]["flip"] and result["training"]["shift"] == 2
    measured = sfumato("classifier", "evaluate", "clf", "--data", "data", "--json")  # at the classifier's size
    assert json.loads(measured.out)["correct"] == result["test"]["correct"]
    write_images(inside / "others", ("a", "c"), 3, channels=3)
    unknown = sfumato("classifier", "evaluate", "clf", "--data", "others")
    assert "class 'c' that the classifier does not know" in unknown.sentence


def test_a_tenth_is_held_out_and_said_so(sfumato: Command, inside: Path):
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(80) % 2)
    made = sfumato("classifier", "train", "--data", "data.npz", "--out", "clf", "--epochs", "1").done()
    assert "a tenth held out" in made.out
    np.savez("few.npz", images=images[:20], labels=np.arange(20) % 2)
    made = sfumato("classifier", "train", "--data", "few.npz", "--out", "clf2", "--epochs", "1")
    assert "the training images themselves" in made.out


def test_bad_input_is_one_sentence(sfumato: Command, inside: Path):
    train = ("classifier", "train", "--out", "clf", "--data")
    assert "fashion-mnist" in sfumato(*train, "fashion-mnits").sentence
    assert "leaves no time" in sfumato(*train, "digits", "--minutes", "0").sentence
    assert "unknown network" in sfumato(*train, "digits", "--network", "vit").sentence
    (inside / "file").write_text("")
    assert "is a file" in sfumato("classifier", "train", "--out", "file", "--data", "digits").sentence
    write_images(inside / "bare", (), 4)
    assert "no labels" in sfumato(*train, "bare").sentence
    evaluate = ("classifier", "evaluate")
    assert "does not exist" in sfumato(*evaluate, "clf", "--data", "digits").sentence
    assert "no module 'nothing'" in sfumato(*evaluate, "py:nothing:build", "--data", "digits").sentence
    assert "unknown device" in sfumato(*evaluate, "py:nothing:build", "--data", "digits", "--device", "tpu").sentence


def test_help_names_the_networks(sfumato: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = sfumato("classifier", "train", "--help")
    assert shown.status == 0 and all(name in shown.out for name in NETWORKS)
    assert "{" not in shown.out
