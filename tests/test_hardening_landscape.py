"""Loss landscapes: on linear classifiers, where every number has a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.classifiers import images, linear, random_linear
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError
from sfumato.defences.hardening.landscape import (
    alignments,
    distances,
    gradient_norms,
    linearity_gaps,
    loss_landscape,
    table,
)

NORMS = {"Linf": lambda w: np.abs(w).sum(), "L2": lambda w: np.sqrt((w**2).sum())}  # each norm's dual
EPS = 0.05


def margins(classifier: Classifier, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How far the true class leads, (B,), and the direction in which that falls, (D,), up to its sign."""
    weight = classifier.module[1].weight.detach().double().numpy()  # type: ignore[index]
    difference = weight[1] - weight[0]
    lead = x.flatten(1).double().numpy() @ difference
    return np.where(y.numpy() == 1, lead, -lead), difference


@pytest.mark.parametrize("norm", list(NORMS))
def test_of_a_linear_classifier_in_closed_form(norm: str) -> None:
    """loss = log(1 + exp(-m)) of the margin m: its slope is sigmoid(-m) |w|*, its distance m / |w|*, its gap convex in m."""
    classifier, x = random_linear(), images(20)
    y = torch.arange(20) % 2
    lead, difference = margins(classifier, x, y)
    length = NORMS[norm](difference)
    slope = 1 / (1 + np.exp(lead))
    assert gradient_norms(classifier, x, y, norm).numpy() == pytest.approx(slope * length, rel=1e-4)
    assert alignments(classifier, x, y, norm, EPS).numpy() == pytest.approx(np.ones(20), abs=1e-5)

    def gap(moved: np.ndarray) -> np.ndarray:  # convex, so largest at one of the two ends
        return np.logaddexp(0, -(lead + moved)) - np.logaddexp(0, -lead) + slope * moved

    widest = np.maximum(gap(np.full(20, EPS * length)), gap(np.full(20, -EPS * length)))
    assert linearity_gaps(classifier, x, y, norm, EPS).numpy() == pytest.approx(widest, rel=0.02, abs=1e-5)
    # The boundary is a plane, and the images are far enough from the box's walls.
    expected = np.where(lead > 0, lead / length, 0.0)
    assert distances(classifier, x, y, norm).numpy() == pytest.approx(expected, rel=0.02, abs=1e-4)
    found = loss_landscape(classifier, x, y, norm=norm, eps=EPS)
    assert (found.clean.correct, found.robust.correct) == (int((lead > 0).sum()), int((lead > EPS * length).sum()))
    assert found.gradient == pytest.approx(float((slope * length).mean()), rel=1e-4)
    assert found.gap == pytest.approx(float(widest.mean()), rel=0.02) and found.alignment == pytest.approx(1, abs=1e-5)
    assert found.distance == pytest.approx(float(np.sort(expected)[9]), rel=0.02, abs=1e-4)


def test_no_gap_where_the_loss_is_linear() -> None:
    """A classifier that is wrong by far: its loss is the margin itself, in float32."""
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    classifier = linear(weight, torch.tensor([0.0, 60.0]))
    x, y = images(8), torch.zeros(8, dtype=torch.long)
    assert float(linearity_gaps(classifier, x, y, "Linf", EPS).max()) < 1e-4
    length = float((weight[1] - weight[0]).abs().sum())
    assert gradient_norms(classifier, x, y, "Linf").tolist() == pytest.approx([length] * 8, rel=1e-5)


def test_a_bent_loss_is_told_from_a_straight_one() -> None:
    def wave(x: Tensor) -> Tensor:
        m = 5 * torch.sin(40 * x.flatten(1).sum(1))
        return torch.stack([-m, m], 1)

    x, y = images(10), torch.arange(10) % 2
    bent, straight = (loss_landscape(each, x, y, eps=EPS) for each in (Classifier(wave, labels="ab"), random_linear()))
    assert bent.gap > 5 * straight.gap and bent.alignment < 0.8 < straight.alignment
    lines = table(bent, straight, "Linf", EPS)
    assert len(lines) == 7 and "gradient alignment" in "".join(lines)


def test_a_boundary_that_is_nowhere_is_infinitely_far() -> None:
    one = linear(torch.zeros(2, 16), torch.tensor([1.0, 0.0]))
    x, y = images(3), torch.tensor([0, 0, 1])
    assert distances(one, x, y, "Linf").tolist() == [math.inf, math.inf, 0]
    assert loss_landscape(one, x, y).alignment == 0


def test_what_cannot_be_measured() -> None:
    x, y = images(2), torch.zeros(2, dtype=torch.long)
    for how, sentence in (({"norm": "L0"}, "unknown norm 'L0'"), ({"eps": 0.0}, "eps 0")):
        with pytest.raises(InputError, match=sentence):
            loss_landscape(random_linear(), x, y, **how)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no images to measure on"):
        loss_landscape(random_linear(), x[:0], y[:0])
