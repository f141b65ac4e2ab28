"""``sfumato score`` and ``sfumato classify``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.commands import Command
from helpers.folders import write_images
from helpers.oracles import TINY, pictures
from sfumato import train


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bars``, labelled, ``bare``, without labels, and ``data.npz`` of bars, all 8x8 grey."""
    folder = tmp_path_factory.mktemp("models")
    train(pictures(64), folder / "bars", steps=40, settings=TINY)
    train(pictures(12, labelled=False), folder / "bare", steps=1, settings=TINY)
    bars = pictures(160, seed=1)
    assert bars.labels is not None
    np.savez(folder / "data.npz", images=bars.images, labels=bars.labels, classes=np.array(bars.classes))
    noise = np.random.default_rng(0).integers(0, 256, (160, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "noise.npz", images=noise)
    np.savez(folder / "colour.npz", images=np.repeat(noise, 3, axis=3))
    Image.fromarray(bars.images[0, ..., 0]).save(folder / "red.png")
    return folder


def test_score_writes_numbers_and_pictures(sfumato: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "score"
    command = ("score", models / "bars", "--data", models / "data.npz", "--against", models / "noise.npz", "-n", 6)
    result = sfumato(*command, "--draws", 8, "-o", out, "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["images"] == 6 and found["network_evaluations"] == 8
    assert found["bits_per_dim"] < found["against"]["bits_per_dim"]
    assert found["against"]["bits"]["auroc"] == 1
    assert sum(found["parts"].values()) == pytest.approx(found["bits_per_dim"])
    assert json.loads((out / "scores.json").read_text()) == found
    with np.load(out / "scores.npz") as arrays:
        assert arrays["bits"].shape == arrays["error"].shape == (6,)
        assert arrays["bits"].mean() == pytest.approx(found["bits_per_dim"])
        assert arrays["against_bits"].shape == (6,)
    assert Image.open(out / "extremes.png").width > 6 * 90


def test_score_by_the_integral_draws_its_figure(sfumato: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "score"
    arguments = ["score", models / "bars", "--data", models / "data.npz", "-n", 2]
    result = sfumato(*arguments, "--method", "integral", "--draws", 16, "-o", out)
    assert result.status == 0, result.err
    assert "bits/dim" in result.out and "than its noise allows" in result.out
    assert (out / "integration.png").exists()
    assert "integration" in json.loads((out / "scores.json").read_text())
    again = sfumato(*arguments, "--method", "ode", "--draws", 4, "--conditional")
    assert again.status == 0, again.err
    assert "given the label" in again.out


def test_classify_fits_pictures_and_refuses_what_it_cannot_see(sfumato: Command, models: Path, tmp_path: Path) -> None:
    red = Image.open(models / "red.png")
    wide = Image.new("L", (3 * red.width, red.height), 255)
    wide.paste(red, (red.width, 0))
    wide.save(tmp_path / "wide.png")
    words = ("classify", models / "bars", "--draws", 16, "--json")
    tried = ((models / "red.png",), (tmp_path / "wide.png",), (tmp_path / "wide.png", "--fit", "pad"))
    plain, cropped, padded = (json.loads(sfumato(*words, *how).out)["images"][0]["shares"] for how in tried)
    assert cropped == plain != padded
    assert "unknown fit" in sfumato("classify", models / "bars", models / "red.png", "--fit", "stretch").sentence
    assert "is no file" in sfumato("classify", models / "bars", tmp_path / "none.png").sentence
    Image.new("RGB", (8, 8), "red").save(tmp_path / "colour.png")
    assert "is a colour image" in sfumato("classify", models / "bars", tmp_path / "colour.png").sentence


def test_classify_tells_pictures_and_data(sfumato: Command, models: Path) -> None:
    result = sfumato("classify", models / "bars", models / "red.png", "--draws", 16)
    assert result.status == 0, result.err
    assert "red.png: " in result.out and "%" in result.out and "network evaluations an image" in result.out
    shown = sfumato("classify", models / "bars", "--data", models / "data.npz", "-n", 5, "--draws", 16, "--json")
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    assert found["count"] == 5 and found["low"] <= found["accuracy"] <= found["high"]
    assert 0 < found["passes_an_image"] <= 3 * 16
    few = ("--draws", 4, "--label", "red", "--label", "blue", "--no-early-stop", "--json")
    whole = sfumato("classify", models / "bars", models / "red.png", *few)
    one = json.loads(whole.out)
    assert one["passes_an_image"] == 2 * 4 and set(one["images"][0]["shares"]) <= {"red", "blue"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score", "bars", "--data", "data.npz", "--method", "bond"], "did you mean 'bound'"),
        (["score", "bars", "--data", "colour.npz"], "3 channels, the model 1"),
        (["score", "bars", "--data", "data.npz", "-n", "0"], "give 1 or more"),
        (["score", "bars", "--data", "data.npz", "--draws", "1"], "too few"),
        (["score", "bars", "--data", "noise.npz", "--conditional"], "neither labels nor captions"),
        (["score", "bars", "--data", "data.npz", "--conditional", "--against", "noise.npz"], "alone"),
        (["score", "bars", "--data", "data.npz", "-o", "data.npz"], "is a file"),
        (["score", "nothing", "--data", "data.npz"], "nothing"),
        (["classify", "bars"], "one of the two"),
        (["classify", "bars", "red.png", "--data", "data.npz"], "one of the two"),
        (["classify", "bars", "missing.png"], "missing.png"),
        (["classify", "bars", "data.npz"], "data.npz"),
        (["classify", "bars", "red.png", "--label", "rad", "--label", "blue"], "did you mean 'red'"),
        (["classify", "bars", "--data", "noise.npz"], "no labels"),
        (["classify", "bars", "--data", "colour.npz"], "3 channels, the model 1"),
        (["classify", "bars", "red.png", "--draws", "0"], "draws=0"),
        (["classify", "bare", "red.png"], "without labels and texts"),
    ],
)
def test_bad_input_is_one_sentence(
    sfumato: Command, models: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(models)
    before = sorted(models.iterdir())
    assert says in sfumato(*arguments).sentence
    assert sorted(models.iterdir()) == before


def test_data_of_other_classes_is_refused(sfumato: Command, models: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "pets", ("cat", "dog"), 30)
    assert "'cat'" in sfumato("classify", models / "bars", "--data", tmp_path / "pets").sentence
