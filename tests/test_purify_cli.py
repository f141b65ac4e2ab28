"""``sfumato purify`` and ``sfumato audit --purify``: files, sections, resumption, one sentence for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import Command
from helpers.generators import random_generator
from helpers.oracles import TINY, pictures
from sfumato import train
from sfumato.defences import Effort, Purifier, purify
from sfumato.generator import Generator

SIDE = 8


def generator(folder: Path, side: int = SIDE, classes: tuple[str, ...] = ("a", "b"), **how: Any) -> Path:
    random_generator(classes=classes, size=(side, side), **how).save(folder)
    return folder


def draw(file: Path, side: int = SIDE, mode: str = "L", seed: int = 0) -> Path:
    shape = (side, side) if mode == "L" else (side, side, len(mode))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(file)
    return file


def test_purify_writes_a_file_for_each_image(sfumato: Command, inside: Path):
    made = generator(inside / "run")
    images = [draw(inside / "one" / "x.png"), draw(inside / "two" / "X.png", seed=1), draw(inside / "y.bmp", seed=2)]
    shown = sfumato("purify", made, *images, "-o", "clean", "--seed", "3", "--device", "cpu", "--json")
    assert shown.status == 0, shown.err
    result = json.loads(shown.out)
    assert [row["image"] for row in result["images"]] == [str(path) for path in images]
    assert [row["out"] for row in result["images"]] == ["clean/x.png", "clean/X-2.png", "clean/y.png"]
    assert (result["sigma"], result["steps"], result["sampler"]) == (0.3, 2, "euler")
    x = torch.stack([torch.from_numpy(np.array(Image.open(path))).float()[None] / 255 for path in images])
    wanted = purify(Purifier.of(Generator.from_pretrained(made, "cpu")), x, seed=3)
    for row, pixels in zip(result["images"], wanted, strict=True):
        stored = np.array(Image.open(row["out"]))
        assert stored.shape == (SIDE, SIDE)
        np.testing.assert_allclose(stored, 255 * pixels[0].numpy(), atol=0.51)
    assert (wanted - x).abs().mean() > 0.01
    # Another noise, by more steps from deeper: something else.
    more = ("--sigma", "2", "--steps", "4", "--sampler", "ancestral")
    assert sfumato("purify", made, images[0], "-o", "other/", *more).status == 0
    assert np.array(Image.open("other/x.png")).tolist() != np.array(Image.open("clean/x.png")).tolist()


def test_purify_takes_folders(sfumato: Command, inside: Path) -> None:
    made = generator(inside / "run")
    for name in ("b.png", "a.bmp"):
        draw(inside / "some" / name)
    (inside / "some" / "results.json").write_text("{}")
    shown = sfumato("purify", made, inside / "some", "-o", "clean", "--device", "cpu", "--json")
    assert shown.status == 0, shown.err
    assert [row["out"] for row in json.loads(shown.out)["images"]] == ["clean/a.png", "clean/b.png"]
    (inside / "none").mkdir()
    assert "is a folder without picture files" in sfumato("purify", made, inside / "none", "-o", "clean").sentence


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (4, "RGBA"), (3, "L")])
def test_purify_keeps_the_colours_of_the_model(sfumato: Command, inside: Path, channels: int, mode: str):
    image = draw(inside / "x.png", mode=mode)
    shown = sfumato("purify", generator(inside / "run", channels=channels), image, "-o", "clean")
    assert shown.status == 0, shown.err
    assert shown.out.startswith("1 image purified (sigma 0.3, 2 steps of euler, ")
    assert Image.open("clean/x.png").mode == {3: "RGB", 4: "RGBA"}[channels]


def test_purify_refuses_what_does_not_fit(sfumato: Command, inside: Path):
    run, image = generator(inside / "run"), draw(inside / "x.png")
    (inside / "text.png").write_text("no image")
    large = draw(inside / "large.png", side=12)
    for words, says in (
        ((run, large), f"'{large}' is 12x12, the model makes 8x8"),
        ((run, draw(inside / "colour.png", mode="RGB")), "is a colour image, the model makes grey ones"),
        ((run, inside / "text.png"), "cannot be used"),
        ((run, "nowhere.png"), "'nowhere.png' is no file"),
        (("nowhere", image), "nowhere"),
        ((run, image, "--sigma", "0"), "sigma 0 cannot purify"),
        ((run, image, "--sigma", "1e6"), "cannot purify"),
        ((run, image, "--steps", "0"), "0 steps are too few"),
        ((run, image, "--sampler", "mean"), "cannot go up from an image"),
        ((run, image, "--sampler", "eulr"), "did you mean 'euler'"),
        ((generator(inside / "conditional", drop="0"), image), "cannot do without a label"),
    ):
        assert says in sfumato("purify", *words, image, "-o", "clean").sentence
    assert "would be written over" in sfumato("purify", run, image, "-o", inside).sentence
    assert "is a file" in sfumato("purify", run, image, "-o", "x.png").sentence
    assert "missing argument" in sfumato("purify", run, "-o", "clean").sentence.lower()
    assert not (inside / "clean").exists()


NAMES = ("<b>red", "green", "blue")
MODEL = f"""
import torch
from sfumato.classifiers import Classifier

class Bars(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(12.0))

    def forward(self, x):
        rows = x.mean((1, 3))
        return self.scale * torch.stack([rows[:, 0:2].mean(1), rows[:, 2:4].mean(1), rows[:, 5:7].mean(1)], 1)

def build():
    return Classifier(Bars(), labels={NAMES!r}, size=(8, 8), channels=1)
"""
NUMBERS = ("average", "worst", "majority")
EFFORT = {"steps": 3, "draws": 2, "fixed_steps": 3, "targets": 1, "submissions": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bars and a generator of them."""
    folder = tmp_path_factory.mktemp("bars")
    data = pictures(60)
    assert data.labels is not None
    arrays: dict[str, Any] = {
        "x_train": data.images[:2],
        "y_train": data.labels[:2],
        "x_test": data.images,
        "y_test": data.labels,
    }
    np.savez(folder / "data.npz", classes=np.array(NAMES), **arrays)
    train(str(folder / "data.npz"), folder / "run", steps=1, settings=TINY)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little effort, where none is asked for."""
    from sfumato.audit import purification

    monkeypatch.setattr(purification, "Effort", lambda: Effort(**EFFORT))


@pytest.mark.slow
def test_audit_behind_a_purifier(
    sfumato: Command, inside: Path, trained: Path, quick: None, monkeypatch: pytest.MonkeyPatch
):
    (inside / "bars.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(inside))
    how = ("--device", "cpu", "--eps", "0.1", "-n", "24", "--screening", "-o", "report")
    words: tuple[Any, ...] = ("audit", "py:bars:build", "--data", trained / "data.npz", *how)
    plain = sfumato(*words, "--json")
    assert plain.status == 0, plain.err
    assert json.loads(plain.out)["purification"] is None
    more = ("--purify", trained / "run", "--purified", "20")
    made = sfumato(*words, *more)
    assert made.status == 0, made.err
    assert "parts were done before" in made.err  # the bare audit is not done again
    assert "all of 4" in made.out and "worst over all attacks" in made.out and "sfumato certify" in made.out
    report = json.loads((inside / "report" / "report.json").read_text())
    found = report["purification"]
    assert found["schema"] == "sfumato.purification/1"
    assert found["model"] == str(trained / "run") and found["images"] == 20
    assert found["effort"]["steps"] == 3 and found["purifier"] == {"sigma": 0.3, "steps": 2, "sampler": "euler"}
    assert [each["name"] for each in found["attacks"]] == ["transfer", "bpda", "one-step", "pgd", "apgd"]
    for row in (found["clean"], found["weak"], found["robust"], *found["attacks"]):
        assert row["worst"]["accuracy"] <= row["average"]["accuracy"]
    arrays = np.load("report/samples.npz")
    said, label = arrays["purification.pgd.said"], arrays["purification.label"]
    assert said.shape == (4, 20) and (label == arrays["label"][:20]).all()
    row = next(each for each in found["attacks"] if each["name"] == "pgd")
    assert row["average"]["correct"] == pytest.approx((said == label).mean(0).sum())
    page = (inside / "report" / "report.html").read_text()
    assert "Behind a purifier" in page and "Nothing here is a certificate" in page
    assert page.count('alt="attacked image"') == 6
    assert "<b>red" not in page.replace('<b class="', "") and "&lt;b&gt;red" in page
    # Stopped in the middle: the parts that are there are taken, the rest is done, and all is the same.
    parts = sorted((inside / "report" / "purification" / "parts").iterdir())
    assert len(parts) == 2 * 8 + 1
    for part in parts[:3]:
        part.unlink()
    again = sfumato(*words, *more, "--json")
    assert again.status == 0 and "14 parts of the purification were done before" in again.err
    other = json.loads(again.out)
    for each in (report, other):
        assert each.pop("seconds") and each.pop("written")
    assert other == report
    # Another purifier, beside the first: only its own parts are left, and the bare audit's are kept.
    (inside / "old.json").write_text((inside / "report" / "report.json").read_text())
    changed = sfumato(*words, *more, "--purify-sigma", "0.2", "--purify-steps", "1", "--baseline", "old.json")
    assert changed.status == 0 and "Behind a purifier, the baseline and now:" in changed.out
    now = json.loads((inside / "report" / "report.json").read_text())
    rows = now["baseline"]["purification"]["rows"]
    assert [row["before"] for row in rows[:3]] == [report["purification"]["robust"][k] for k in NUMBERS]
    assert [row["now"] for row in rows[:3]] == [now["purification"]["robust"][k] for k in NUMBERS]
    fixed = rows[3]
    assert (fixed["before"], fixed["now"]) == tuple(r["purification"]["fixed"]["robust"] for r in (report, now))
    assert "behind a purifier, under all attacks" in (inside / "report" / "report.html").read_text()
    # A purifier in the baseline alone is said; a broken entry of it is no baseline.
    bare = sfumato(*words, "--baseline", "old.json")
    assert bare.status == 0 and "give --purify to compare that" in bare.out
    broken = {**report, "seconds": {}, "written": "", "purification": {"robust": 1}}
    (inside / "old.json").write_text(json.dumps(broken))
    assert "lacks a proper 'purification'" in sfumato(*words, "--baseline", "old.json").sentence
    assert len(list((inside / "report" / "purification" / "parts").iterdir())) == 2 * 7 + 1


def test_audit_refuses_a_purifier_that_does_not_fit(
    sfumato: Command, inside: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    (inside / "bars.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(inside))
    words = ("audit", "py:bars:build", "--data", trained / "data.npz", "--device", "cpu", "-o", "report")
    large = generator(inside / "large", side=16)
    for more, says in (
        (("--purify", large), "the classifier takes 8x8 pixels, the generator makes 16x16"),
        (("--purify", generator(inside / "other")), "the classifier knows a class"),
        (("--purify", "nowhere"), "nowhere"),
        (("--purify", trained / "run", "--norm", "L0"), "L0"),
        (("--purify", trained / "run", "--purified", "0"), "--purified 0"),
        (("--purify", trained / "run", "--purify-sigma", "-1"), "cannot purify"),
        (("--purify-steps", "3"), "name one with --purify"),
    ):
        assert says in sfumato(*words, *more).sentence
    assert not (inside / "report").exists()
