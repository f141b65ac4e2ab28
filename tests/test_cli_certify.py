"""``sfumato certify``: files, table, picture, the same again, and one sentence for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import Command
from helpers.generators import saved_generator
from sfumato.classifiers import train_classifier
from sfumato.defences import SmoothedClassifier, certify
from sfumato.defences.smoothing import certified_accuracy


@pytest.fixture(scope="session")
def digits_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits that saw noise. Not to be written to."""
    folder = tmp_path_factory.mktemp("digits-classifier") / "clf"
    train_classifier("digits", folder, epochs=4, noise=0.2, device="cpu")
    return folder


SMALL = ("--data", "digits", "--sigma", "0.2", "-n", "12", "--samples", "1500", "--device", "cpu")


def test_certify_shows_the_curve_the_table_and_each_image(sfumato: Command, inside: Path, digits_classifier: Path):
    words = ("certify", digits_classifier, *SMALL, "--generator", saved_generator(inside / "gen"), "--attacked", "2")
    made = sfumato(*words, "--radii", "0.2,0.1", "-o", "cert")
    assert made.status == 0, made.err
    lines = made.out.splitlines()
    assert lines[0].startswith("Smoothed with sigma 0.2 behind the denoiser of ")
    assert lines[-1] == "picture: cert/certificates.png"
    result = json.loads((inside / "cert" / "certificates.json").read_text())
    assert result["schema"] == "sfumato.certificates/1" and result["stamp"]["denoiser"] == "float32"
    assert result["smoothing"] == {"sigma": 0.2, "mode": "sequential", "alpha": 0.001, "n0": 100, "n": 1500}
    table = result["table"]
    assert [row["radius"] for row in table] == [0, 0.1, 0.2] and [row["linf"] for row in table] == [0, 0.1 / 8, 0.2 / 8]
    shares = [row["certified"]["accuracy"] for row in table]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0
    for row in table:
        assert row["certified"]["count"] == 12 and row["empirical"]["count"] == row["certified_attacked"]["count"] == 2
        assert row["certified_attacked"]["accuracy"] <= row["empirical"]["accuracy"]
        assert row["guaranteed"] <= row["certified"]["accuracy"]
    assert result["attack"]["contradictions"] == 0
    # The picture, the curve and the arrays say the same.
    assert Image.open("cert/certificates.png").size[0] > 500
    curve = dict(zip(result["curve"]["radius"], result["curve"]["accuracy"], strict=True))
    assert [curve[row["radius"]] for row in table] == shares and max(curve) == 0.2
    arrays = np.load("cert/certificates.npz")
    assert len(arrays["row"]) == 12 and len(arrays["fell"]) == 2 and arrays["verdicts"].shape == (12, 2)
    right = arrays["predicted"] == arrays["label"]
    for j, row in enumerate(table[1:]):
        reached = arrays["radius"] >= arrays["radii"][j]
        assert (reached & right).sum() == row["certified"]["correct"]
        assert (reached == (arrays["verdicts"][:, j] == 1)).all()
    assert (arrays["predicted"] == -1).sum() == result["abstained"]
    assert np.median(arrays["n"] + arrays["selection"]) == result["draws"]["median"]
    # Again, with another batch size: all but the clock and the network's passes is the same.
    again = sfumato(*words, "--radii", "0.1,0.2", "--batch-size", "50", "-o", "again", "--json")
    assert again.status == 0, again.err
    fresh = json.loads(again.out)
    for each in (result, fresh):
        for key in ("seconds", "written", "out"):
            each.pop(key, None)
        each["draws"].pop("passes")
    assert fresh == result
    other = np.load("again/certificates.npz")
    assert all(np.array_equal(arrays[name], other[name]) for name in arrays.files)


def test_certify_without_a_denoiser_by_cohens_procedure(sfumato: Command, inside: Path, digits_classifier: Path):
    how = ("--samples", "400", "--mode", "cohen", "--attacked", "0", "-o", "cert")
    made = sfumato("certify", digits_classifier, *SMALL, *how)
    assert made.status == 0, made.err
    result = json.loads((inside / "cert" / "certificates.json").read_text())
    assert result["generator"] is None and result["attack"] is None and result["stamp"]["denoiser"] is None
    assert [row["radius"] for row in result["table"]] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert (np.load("cert/certificates.npz")["n"] == 400).all()
    assert result["table"][1]["certified"]["accuracy"] > 0.4  # it was trained with this noise


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--sigma", "0"), "sigma 0 cannot smooth"),
        (("--radii", "0.1;0.2"), "--radii '0.1;0.2' cannot be read"),
        (("--radii", "0.1,-0.2"), "give L2 distances over 0"),
        (("--radii", "0.2,3"), "radius 3 cannot be certified with sigma 0.2 and 1,500 noisy copies"),
        (("--samples", "20", "--radii", "0.4"), "noisy copies (--samples "),
        (("--alpha", "2"), "alpha 2 is no error to allow"),
        (("--mode", "cohens"), "did you mean 'cohen'"),
        (("--n0", "0"), "both must be 1 or more"),
        (("-n", "0"), "give 1 or more images"),
        (("--attacked", "-1"), "0 or more of them to attack"),
        (("--batch-size", "0"), "--batch-size 0: give 1 or more"),
        (("--generator", "nowhere"), "nowhere"),
    ],
)
def test_bad_options(sfumato: Command, inside: Path, digits_classifier: Path, words: tuple[str, ...], sentence: str):
    assert sentence in sfumato("certify", digits_classifier, *SMALL, *words, "-o", "cert").sentence
    assert not (inside / "cert").exists()


def test_models_that_do_not_fit(sfumato: Command, inside: Path, digits_classifier: Path):
    words = ("certify", digits_classifier, *SMALL, "-o", "cert", "--generator")
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"side": 16}, "the classifier takes 8x8 pixels, the generator makes 16x16"),
        ({"channels": 3}, "the classifier takes grey images, the generator makes colour ones"),
        ({"classes": ("a", "b")}, "the classifier knows a class '0', the generator does not"),
        ({"drop": "0"}, "cannot do without a label"),
        ({"sharing": "rung", "rungs": "2,2"}, "a network for each of its rungs alone"),
    ]
    for number, (kind, sentence) in enumerate(kinds):
        assert sentence in sfumato(*words, saved_generator(inside / str(number), **kind)).sentence
    assert "sigma 50 is more noise than" in sfumato(*words, saved_generator(inside / "seen"), "--sigma", "50").sentence
    wide = np.zeros((4, 8, 16), np.uint8)
    np.savez("wide.npz", x_test=wide, y_test=np.arange(4), x_train=wide[:1])
    assert "x" in sfumato(*words, saved_generator(inside / "gen"), "--data", "wide.npz", "--size", "16x8").sentence
    (inside / "file").write_text("")
    assert "is a file, not a folder" in sfumato("certify", digits_classifier, *SMALL, "-o", "file").sentence
    assert not (inside / "cert").exists()


@pytest.mark.slow
def test_a_certification_that_was_stopped_goes_on_and_finds_the_same(
    sfumato: Command, inside: Path, digits_classifier: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ("certify", digits_classifier, *SMALL, "-n", "30", "--attacked", "26", "--samples", "400")
    whole = sfumato(*words, "-o", "whole", "--json")
    assert whole.status == 0, whole.err
    real = certified_accuracy.smooth_adv
    seen: list[int] = []

    def stopped(smoothed: SmoothedClassifier, x: torch.Tensor, *rest: object, **named: object) -> object:
        seen.append(len(x))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(smoothed, x, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(certified_accuracy, "smooth_adv", stopped)
    half = sfumato(*words, "-o", "half")
    assert half.status == 130 and "re-run the command to resume" in half.err
    assert seen == [25, 1] and not (inside / "half" / "certificates.json").exists()
    monkeypatch.setattr(certified_accuracy, "certify", None)  # no image is certified again
    resumed = sfumato(*words, "-o", "half", "--json")
    assert resumed.status == 0, resumed.err
    assert "3 of 4 parts were done before" in resumed.err and seen == [25, 1, 1]
    one, other = json.loads(whole.out), json.loads(resumed.out)
    for each in (one, other):
        for key in ("seconds", "written", "out"):
            each.pop(key)
    assert one == other
    arrays, others = np.load("whole/certificates.npz"), np.load("half/certificates.npz")
    assert all(np.array_equal(arrays[name], others[name]) for name in arrays.files)
    kept = inside / "half" / "certification" / "parts"
    before = {part.name for part in kept.iterdir()}
    # Another seed is another certification: nothing of this one is taken, and its parts go.
    monkeypatch.setattr(certified_accuracy, "certify", certify)
    monkeypatch.setattr(certified_accuracy, "smooth_adv", real)
    fresh = sfumato(*words, "-o", "half", "--seed", "1")
    assert fresh.status == 0 and "done before" not in fresh.err
    assert {part.name for part in kept.iterdir()}.isdisjoint(before) and len(list(kept.iterdir())) == 4
