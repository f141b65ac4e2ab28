"""What the decision-boundary figures show: colours, panels and their sentences, files, and the command."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.boundaries import constant, greys, linear
from helpers.commands import Command
from sfumato.boundary import boundary, field, through
from sfumato.boundary.colours import COLOURS, Colours, blend
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError


def test_colours_tell_classes_apart_and_paleness_doubt():
    classifier, _, _ = linear(3)
    found = field(classifier, through(greys(3)), (-1, 1), (-1, 1), 15)
    colours = Colours(("a", "b", "$c$"), [found.predicted])
    picture = blend(found, colours)
    assert picture.min() >= 0 and picture.max() <= 1
    flat, order = picture.reshape(-1, 3), np.argsort(found.confidence.ravel())
    for label in np.unique(found.predicted):
        mine = order[found.predicted.ravel()[order] == label]
        assert (np.diff(flat[mine].sum(1)) <= 1e-9).all()  # the surer, the darker
    assert [name for _, name in colours.legend][-1] == r"\$c\$"


def test_many_classes_share_the_last_grey():
    predicted = np.array([[7] * 50 + list(range(100, 130))])
    colours = Colours([str(i) for i in range(200)], [predicted])
    assert colours.of(7) == COLOURS[0] and len({colours.of(i) for i in range(100, 130)}) == len(COLOURS) - 1
    assert colours.legend[-1][1] == "other classes" and len(colours.legend) == len(COLOURS)


@cache
def trained() -> tuple[Classifier, Tensor, Tensor]:
    """A linear classifier of scikit-learn's digits, with hostile names."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    fitted = LogisticRegression(max_iter=200).fit(images[:500] / 16, labels[:500])
    head = nn.Linear(64, 10)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.coef_))
        head.bias.copy_(torch.from_numpy(fitted.intercept_))
    names = ("$\\frac", "two\nlines", "<b>", "a very long name of a class, longer than fits", *"456789")
    x = torch.from_numpy(images[:40] / 16).float().reshape(-1, 1, 8, 8)
    return Classifier(nn.Sequential(nn.Flatten(), head), labels=names), x, torch.from_numpy(labels[:40]).long()


def test_one_figure_of_everything(tmp_path: Path):
    classifier, x, y = trained()
    calls: list[tuple[int, int]] = []
    made = boundary(classifier, x, y, eps=0.2, resolution=15, progress=lambda *call: calls.append(call))
    made.save(tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > picture.height > 1000
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 100
    panels = made.panels
    assert len(panels) == 5 and calls == [(i, 5) for i in range(1, 6)]
    assert all(panel.title and panel.caption.endswith(".") for panel in panels)


def test_two_classifiers_on_the_same_axes(tmp_path: Path):
    classifier, x, y = trained()
    blunt = Classifier(lambda images: 0.5 * classifier.model(images), labels=classifier.labels)
    made = boundary(classifier, x, y, other=blunt, kind="adversarial", eps=0.2, resolution=15, names=("sharp", "blunt"))
    titles = [panel.title for panel in made.panels]
    assert [title.split("\n")[0] for title in titles] == ["sharp", "blunt", "blunt"] and "for the first" in titles[2]
    limits = {(axes.get_xlim(), axes.get_ylim()) for axes in made.figure().axes if axes.get_xlabel()}
    assert len(limits) == 1
    # Half the logits are the same classes: all three planes are cut at the same place.
    distances = {panel.caption.split(" at ")[1].split(" eps")[0] for panel in made.panels}
    assert len(distances) == 1
    made.save(tmp_path / "two.svg")
    assert (tmp_path / "two.svg").read_text().startswith("<?xml")


def test_a_classifier_that_gives_no_gradient():
    classifier, x, y = trained()

    def votes(images: Tensor) -> Tensor:
        with torch.no_grad():
            return 5 * torch.nn.functional.one_hot(classifier.model(images).argmax(1), 10).float()

    hard = Classifier(votes, labels=classifier.labels)
    made = boundary(hard, x, y, kind="adversarial", eps=0.3, resolution=9)
    assert " turns " in made.panels[0].caption
    with pytest.raises(InputError, match="no gradient"):
        boundary(hard, x, y, kind="gradient", eps=0.3)
    hard.budget = 10
    hard.reset_counts()
    with pytest.raises(InputError, match="budget"):
        boundary(hard, x, y, kind="adversarial", eps=0.3)


def test_the_same_seed_draws_the_same(tmp_path: Path):
    classifier, x, y = trained()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        boundary(classifier, x, y, kind="church", eps=0.2, resolution=7, seed=seed).save(tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_bad_input():
    classifier, x, y = trained()
    for arguments, sentence in (
        ({"kind": "planes"}, "did you mean 'plane'"),
        ({"norm": "L0"}, "unknown norm"),
        ({"eps": 0.0}, "eps is 0"),
        ({"eps": math.nan}, "eps is nan"),
        ({"resolution": 1}, "resolution is 1"),
        ({"index": (0, 1, 1)}, "three different"),
        ({"index": (0, 1, 99)}, "index 99"),
        ({"other": Classifier(constant)}, "same classes"),
    ):
        with pytest.raises(InputError, match=sentence):
            boundary(classifier, x, y, **{"kind": "plane", **arguments})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a classifier"):
        boundary()
    for labels, sentence in ((y[:3], "do not fit"), (y + 5, "labels run from")):
        with pytest.raises(InputError, match=sentence):
            boundary(classifier, x, labels)
    with pytest.raises(InputError, match="2 or more points"):
        field(classifier, through(x[:3]), (0, 1), (1, 1), 5)


# -- the command -------------------------------------------------------------------------------------------------------

MODEL = """
import torch
from sfumato.classifiers import Classifier

def build(scale=1.0):
    torch.manual_seed(0)
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
"""


def test_the_command(sfumato: Command, inside: Path):
    (inside / "boundary_model.py").write_text(MODEL)
    words = ("boundary", "py:boundary_model:build", "--data", "digits", "--resolution", "9", "--eps", "32/255")
    made = sfumato(*words, "--kind", "plane", "--index", "0", "1", "2", "-o", "plane.png", "--json")
    assert made.status == 0, made.err
    result = json.loads(made.out)
    assert result["eps"] == pytest.approx(32 / 255) and result["panels"][0]["title"] == "The plane through three images"
    assert Image.open(inside / "plane.png").width > 400
    shown = sfumato(*words, "--kind", "church")
    assert shown.status == 0 and shown.out.splitlines()[-1] == "figure: boundary.png"
    assert (inside / "boundary.png").exists()


def test_the_commands_sentences(sfumato: Command, inside: Path):
    (inside / "boundary_model.py").write_text(MODEL)
    words = ("boundary", "py:boundary_model:build", "--data", "digits")
    assert "must end in" in sfumato(*words, "-o", "boundary.txt").sentence
    assert "CLF is missing" in sfumato("boundary").sentence
    assert "--data is missing" in sfumato("boundary", "clf").sentence
    assert "unknown kind" in sfumato(*words, "--kind", "toys").sentence
    assert "--eps" in sfumato(*words, "--eps", "8/0").sentence
    assert "--index 300" in sfumato(*words, "--index", "1", "2", "300").sentence
