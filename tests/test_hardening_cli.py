"""``sfumato harden``: files, table, the same again, after a stop, with a generator, and one sentence for what does not fit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import Command
from helpers.folders import write_images
from helpers.generators import saved_generator
from sfumato.boundary import figure
from sfumato.classifiers import load_classifier, train_classifier
from sfumato.core import checkpoint
from sfumato.defences.hardening import generated, landscape
from sfumato.engine.resume import STATE

HOW = ("--data", "digits", "--eps", "0.1", "--epochs", "1", "-n", "20", "--device", "cpu")


@pytest.fixture(scope="module")
def clf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits classifier. Not to be written to."""
    folder = tmp_path_factory.mktemp("clf") / "clf"
    train_classifier("digits", folder, epochs=3, device="cpu")
    return folder


@pytest.mark.slow
def test_harden_writes_what_changed(sfumato: Command, inside: Path, clf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("_FINE", 15), ("_WINDOW_FINE", 7), ("_WINDOWS_FINE", 4)):  # a coarse picture
        monkeypatch.setattr(figure, name, few)
    words = ("harden", clf, *HOW, "--epochs", "8", "--out", "clf2")
    made = sfumato(*words)
    assert made.status == 0, made.err
    lines = made.out.splitlines()
    assert lines[0].startswith("hardened clf2 (trades, Linf 0.1): 8.0 epochs")
    assert any(line.startswith("  robust accuracy (PGD, Linf 0.1)") for line in lines)
    assert lines[-2] == f"next: sfumato audit {clf} --data digits --norm Linf --eps 0.1 -o clf-report"
    assert lines[-1].endswith("--baseline clf-report/report.json -o clf2-report")
    found = json.loads((inside / "clf2" / "smoothness.json").read_text())
    assert found["schema"] == "sfumato.smoothness/1" and found["images"] == 20 and found["eps"] == 0.1
    measured = {"clean", "robust", "gradient", "gap", "alignment", "distance"}
    assert set(found["before"]) == set(found["after"]) == measured
    assert found["after"]["robust"]["accuracy"] > found["before"]["robust"]["accuracy"]
    assert found["training"]["hardening"] == {"method": "trades", "norm": "Linf", "eps": 0.1, "steps": 3, "beta": 6.0}
    assert Image.open("clf2/boundary.png").size[0] > 500 and len(found["boundary"]) == 8
    assert load_classifier("clf2", "cpu").labels == load_classifier(clf, "cpu").labels
    # The same again: done already; the numbers are the same, as one JSON object.
    monkeypatch.setattr(landscape, "picture", lambda *_, **__: "it was not asked for")  # it takes its time
    again = sfumato(*words, "--json")
    assert again.status == 0, again.err
    fresh = json.loads(again.out)
    assert fresh.pop("done_before") and [line.split(": ", 1)[1] for line in lines[-2:]] == fresh.pop("next")
    assert fresh == {**found, "boundary": "it was not asked for"}


@pytest.mark.slow
def test_the_audit_of_a_hardened_classifier_finds_that_of_the_one_it_came_from(
    sfumato: Command, inside: Path, clf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "picture", lambda *_, **__: "it was not asked for")
    assert sfumato("harden", clf, *HOW, "--out", "clf2").status == 0
    how = ("--data", "digits", "-n", "12", "--screening", "--device", "cpu", "--json")
    for place, eps in (("far", "0.05"), ("report", "0.1")):
        made = sfumato("audit", clf, *how, "--eps", eps, "-o", place)
        assert made.status == 0 and json.loads(made.out)["baseline"] is None, made.err
    second = sfumato("audit", "clf2", *how, "--eps", "0.1", "-o", "report2")
    assert second.status == 0 and "report/report.json" in second.err
    assert json.loads(second.out)["baseline"]["name"] == str(clf)
    alone = sfumato("audit", "clf2", *how, "--eps", "0.02", "-o", "report3")  # another threat: nothing to show beside
    assert alone.status == 0 and json.loads(alone.out)["baseline"] is None


def test_hardened_for_certify_it_names_the_commands_that_certify(
    sfumato: Command, inside: Path, clf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "picture", lambda *_, **__: "it was not asked for")
    model = saved_generator(inside / "gen")
    made = sfumato("harden", clf, *HOW, "--method", "denoised", "--eps", "0.25", "--generator", model, "--out", "clf2")
    assert made.status == 0, made.err
    first, then = made.out.splitlines()[-2:]
    how = f"--data digits --sigma 0.25 --generator {model} -o"
    assert first == f"next: sfumato certify {clf} {how} clf-cert"
    assert then == f"then: sfumato certify clf2 {how} clf2-cert"
    mixed = ("--method", "noise", "--eps", "0.25", "--generator", model, "--epochs", "0.2")
    monkeypatch.setattr(generated, "surest", lambda *_: (torch.arange(10), torch.arange(10), 10))
    noisy = sfumato("harden", clf, *HOW, *mixed, "--out", "clf3")
    assert noisy.status == 0
    assert noisy.out.splitlines()[-1].endswith("certify clf3 --data digits --sigma 0.25 -o clf3-cert")
    few = ("-n", "4", "--samples", "400", "--attacked", "0", "--device", "cpu")
    certified = sfumato(*then.split()[2:], *few)
    assert certified.status == 0, certified.err
    big, conditional = saved_generator(inside / "big", side=16), saved_generator(inside / "conditional", drop="0")
    for more, sentence in (
        ((), "give a --generator"),
        (("--generator", big), "the generator makes 16x16"),
        (("--generator", conditional), "cannot do without a label"),
    ):
        assert sentence in sfumato("harden", clf, *HOW, "--method", "denoised", *more, "--out", "no").sentence
        assert not (inside / "no").exists()


@pytest.mark.slow
def test_a_killed_hardening_goes_on(sfumato: Command, inside: Path, clf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images are drawn first, and not again; then kill -9 in the training, and the same command."""
    model = saved_generator(inside / "gen")
    more = ("--epochs", "0.5", "--method", "fast", "--generator", model, "--out", "clf2")
    words = [str(word) for word in ("harden", clf, *HOW, *more)]
    program = """
import os, signal, sys, torch
import sfumato.engine.loop as loop, sfumato.defences.hardening.generated as generated
from sfumato.cli import main
loop.CHECKPOINT_SECONDS, save, saved = 0.0, loop.RunFolder.save, []
def save_and_die(folder, trainer):
    save(folder, trainer)
    saved.append(trainer.step)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
loop.RunFolder.save = save_and_die
generated.surest = lambda _, images, labels: (torch.arange(len(images)), labels, len(images))
main(sys.argv[1:])
"""
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert checkpoint.read(inside / "clf2" / STATE)[1]["numbers"]["step"] == 3
    assert not (inside / "clf2" / "model.safetensors").exists()
    drawn = (inside / "clf2" / generated.FILE).read_bytes()
    monkeypatch.setattr(generated, "surest", lambda _, images, labels: (torch.arange(len(images)), labels, len(images)))
    monkeypatch.setattr(landscape, "picture", lambda *_, **__: "it was not asked for")
    made = sfumato(*words)
    assert made.status == 0, made.err
    assert "there is no picture of the boundaries: it was not asked for" in made.err
    assert not (inside / "clf2" / "boundary.png").exists()
    assert "31% of each batch generated" in made.out and "resumed after step 3" in made.err
    assert (inside / "clf2" / generated.FILE).read_bytes() == drawn


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "trade"), "did you mean 'trades'"),
        (("--norm", "Linff"), "did you mean 'Linf'"),
        (("--norm", "L1"), "unknown norm 'L1' for adversarial training"),
        (("--eps", "0"), "eps 0 leaves nothing"),
        (("--eps", "-0.1"), "--eps '-0.1' cannot be"),
        (("--eps", "much"), "--eps 'much' is no size"),
        (("--minutes", "0"), "--minutes 0 leaves no time"),
        (("--epochs", "-1"), "--epochs -1 leaves no time"),
        (("-n", "0"), "-n 0: give 1 or more"),
        (("--share", "1"), "share 1"),
        (("--generator", "nowhere"), "nowhere"),
        (("--data", "nothing"), "nothing"),
    ],
)
def test_harden_names_what_is_wrong(
    sfumato: Command, inside: Path, clf: Path, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in sfumato("harden", clf, *HOW, "--out", "clf2", *words).sentence
    assert not (inside / "clf2").exists()


def test_harden_refuses_what_does_not_fit(
    sfumato: Command, inside: Path, clf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: object, classifier: object = clf) -> str:
        return sfumato("harden", classifier, *HOW, "--out", "clf2", *words).sentence

    write_images(inside / "letters", ("a", "b"), 30)
    write_images(inside / "bare", (), 60)
    assert "class 'a' that the classifier does not know" in refused("--data", "letters")
    assert "has no labels" in refused("--data", "bare")
    (inside / "mine.py").write_text("from torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    monkeypatch.chdir(inside)
    assert "cannot be hardened, only sfumato's networks" in refused(classifier="py:mine:model")
    assert "does not exist" in refused(classifier="nowhere")
    assert "makes 16x16" in refused("--generator", saved_generator(inside / "wide", side=16))
    assert "makes colour ones" in refused("--generator", saved_generator(inside / "colour", channels=3))
    letters = saved_generator(inside / "other", classes=tuple("abcdefghij"))
    assert "knows a class '0', the generator does not" in refused("--generator", letters)
    assert not (inside / "clf2").exists()
    assert "holds another run" in sfumato("harden", clf, *HOW, "--out", clf).sentence
    (inside / "file").write_text("")
    assert "is a file" in refused("--out", "file")
    np.savez("colour.npz", images=np.zeros((60, 8, 8, 3), np.uint8), labels=np.arange(60) % 10)
    assert "give images of 1 channels" in refused("--data", "colour.npz")
