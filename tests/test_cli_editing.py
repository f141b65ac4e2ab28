"""``sfumato edit``: the three edits from the command line, what is written, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.commands import Command

DRAW = ("-n", 3, "--steps", 4, "--seed", 1)


@pytest.fixture
def digit(inside: Path, digits_run: Path, sfumato: Command) -> Path:
    """A picture, a mask of its size with a hole, and the picture at half its size; in the current folder."""
    sfumato("sample", digits_run, "--label", "3", "-n", 1, "-o", "digit/").done()
    path = Path("digit/00000-3.png")
    image = Image.open(path)
    hole = Image.new("L", image.size)
    hole.paste(255, (2, 2, image.width // 2, image.height // 2))
    hole.save("mask.png")
    image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX).save("small.png")
    return path


def arrays(name: str) -> np.ndarray:
    with np.load(name) as archive:
        assert set(archive) <= {"images", "labels", "classes"}
        return archive["images"]


def test_image_to_image(sfumato: Command, digits_run: Path, digit: Path):
    done = sfumato("edit", digits_run, digit, *DRAW, "-o", "plain.npz")
    assert (done.status, done.out) == (0, "3 images, image to image, strength 0.6: plain.npz\n")
    done = sfumato("edit", digits_run, digit, "--strength", 0.3, "--label", "8", *DRAW, "-o", "eights/", "--json")
    result = json.loads(done.out)
    assert (result["edit"], result["strength"], result["image"]) == ("image to image", 0.3, str(digit))
    assert sorted(p.name for p in Path("eights").iterdir()) == ["00000-8.png", "00001-8.png", "00002-8.png"]
    given = np.asarray(Image.open(digit)).astype(float)
    near = [np.abs(np.asarray(Image.open(p)) - given).mean() for p in Path("eights").iterdir()]
    far = np.abs(arrays("plain.npz")[..., 0] - given).mean((1, 2))
    assert max(near) < far.min()
    assert sfumato("edit", digits_run, digit, "--strength", 0, *DRAW, "-o", "same/").status == 0
    names = sorted(p.name for p in Path("same").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]  # of no class
    assert all((np.asarray(Image.open(Path("same") / name)) == given).all() for name in names)


def test_full_strength_is_sampling(sfumato: Command, digits_run: Path, digit: Path):
    assert sfumato("edit", digits_run, digit, "--strength", 1, *DRAW, "-o", "all.npz").status == 0
    assert sfumato("sample", digits_run, *DRAW, "-o", "sampled.npz").status == 0
    assert (arrays("all.npz") == arrays("sampled.npz")).all()


def test_inpainting(sfumato: Command, digits_run: Path, digit: Path):
    done = sfumato("edit", digits_run, digit, "--mask", "mask.png", *DRAW, "-o", "new.npz")
    hole = np.asarray(Image.open("mask.png")) == 255
    said = f"3 images, inpainting, {hole.mean():.0%} inpainted, strength 1: new.npz\n"
    assert (done.status, done.out) == (0, said)
    given, painted = np.asarray(Image.open(digit)), arrays("new.npz")[..., 0]
    assert (painted[:, ~hole] == given[~hole]).all() and (painted[:, hole] != given[hole]).mean() > 0.5
    sfumato("edit", digits_run, digit, "--mask", "mask.png", "--resample", 0, *DRAW, "-o", "once.npz").done()
    assert (arrays("once.npz") != arrays("new.npz")).any()


def test_super_resolution(sfumato: Command, digits_run: Path, digit: Path):
    done = sfumato("edit", digits_run, "small.png", *DRAW, "-o", "large.npz", "--json")
    result = json.loads(done.out)
    assert (result["edit"], result["strength"]) == ("super-resolution", None)
    small, large = np.asarray(Image.open("small.png")).astype(float), arrays("large.npz")[..., 0].astype(float)
    pooled = large.reshape(3, small.shape[0], 2, small.shape[1], 2).mean((2, 4))
    np.testing.assert_allclose(pooled, np.broadcast_to(small, pooled.shape), atol=0.51)  # rounded to 8 bits
    done = sfumato("edit", digits_run, "small.png", *DRAW, "-o", "grid.png")
    assert done.out == f"3 images, super-resolution from {small.shape[1]}x{small.shape[0]}: grid.png\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["digit/00000-3.png", "--mask", "small.png"], "give a mask of the same size"),
        (["digit/00000-3.png", "--strength", "1.01"], "strength 1.01 is impossible"),
        (["digit/00000-3.png", "--sampler", "mean"], "sampler 'mean' adds no noise"),
        (["digit/00000-3.png", "--resample", "2"], "give a mask too"),
        (["digit/00000-3.png", "--label", "ten"], "unknown label 'ten'"),
        (["digit/00000-3.png", "small.png"], "give IMAGE, or MODEL IMAGE"),
        (["nowhere.png"], "'nowhere.png' is no file"),
        (["broken.png"], "'broken.png' cannot be used"),
        (["digit/00000-3.png", "-n", "0"], "-n 0"),
    ],
)
def test_bad_input(sfumato: Command, digits_run: Path, digit: Path, options: list[str], words: str):
    Path("broken.png").write_bytes(digit.read_bytes()[:60])
    before = sorted(Path().rglob("*"))
    assert words in sfumato("edit", digits_run, *options, "-o", "out.png").sentence
    assert sorted(Path().rglob("*")) == before


def test_what_sample_did_before_is_named(sfumato: Command, digits_run: Path, digit: Path):
    assert "use 'sfumato edit MODEL IMAGE'" in sfumato("sample", digits_run, "--init", digit).sentence
    for option in ("--mask", "--strength"):
        assert option in sfumato("sample", digits_run, option, "1").sentence


def test_one_name_is_an_image_for_the_packaged_model(sfumato: Command, digit: Path):
    done = sfumato("edit", digit, "--prompt", "a star", "--strength", 0.2, "-n", 1, "--steps", 4, "-o", "edited.png")
    assert (done.status, done.out) == (0, "1 image, image to image, strength 0.2: edited.png\n"), done.err
    with Image.open("edited.png") as picture:
        assert picture.mode in ("RGB", "RGBA") and picture.width >= 64


def test_a_model_of_several_is_refused(
    sfumato: Command, digits_run: Path, digit: Path, monkeypatch: pytest.MonkeyPatch
):
    from sfumato import recipes
    from sfumato.generator import Generator
    from sfumato.recipes.cascade import Cascade

    cascade = Cascade([Generator.from_pretrained(digits_run, "cpu")])
    monkeypatch.setattr(recipes, "load", lambda *_: cascade)
    assert "one of a recipe" in sfumato("edit", digits_run, digit, "-o", "out.png").sentence
