"""Two-dimensional toy data, and a small network on it with and without adversarial training: the whole input space fits a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.attacks.ascent import ascend
from sfumato.attacks.norms import check_norm, per_sample, project_onto, steepest
from sfumato.boundary.fields import Field, answers_at
from sfumato.boundary.planes import SECTION_NORMS
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError, nearest
from sfumato.core.streams import mix_seed

TOYS = ("moons", "rings")
TOY_EPS = {"Linf": 0.05, "L2": 0.058, "L1": 0.058}  # less than half the gap between the classes
_POINTS = 60
_GAP, _SPACING = 0.125, 0.03  # Linf distance between points of two classes, and of one
_NOISE = {"moons": 0.12, "rings": 0.06}
_MARGIN = 0.12  # of the unit square is left free around the points
_WIDTH = 96  # of the network's two hidden layers
_STEPS = 250
_ASCENT = 4  # steps of the inner maximisation, each half of eps


class Toy(NamedTuple):
    """Points in the unit square with labels."""

    x: Tensor  # (N, 2)
    y: Tensor  # (N,)
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ToyResult:
    """A classifier on a toy: its answers over the unit square, and whose ball holds another class.

    Attributes:
        field: over the unit square.
        right: (N,) bool, the point itself is classified right.
        reached: (N,) bool, somewhere in the point's ball is another class than its own.
    """

    field: Field
    right: np.ndarray
    reached: np.ndarray


def toy(name: str, count: int = _POINTS, seed: int = 0) -> Toy:
    """Up to ``count`` points of "moons" or "rings" (scikit-learn's) in the unit square; InputError for another name.

    Points nearer to the other class than _GAP, or to one of their own than _SPACING, are left out: a boundary that keeps
    clear of all balls exists, and the balls can be told apart.
    """
    from sklearn.datasets import make_circles, make_moons

    if name not in TOYS:
        raise InputError(f"unknown toy {name!r}: {nearest(name, TOYS)}")
    state = mix_seed(seed, TOYS.index(name))
    points: Any
    labels: Any
    if name == "moons":
        points, labels = make_moons(20 * count, noise=_NOISE[name], random_state=state)
        classes = ("upper moon", "lower moon")
    else:
        points, labels = make_circles(20 * count, noise=_NOISE[name], factor=0.6, random_state=state)
        classes = ("outer ring", "inner ring")
    low, high = points.min(0), points.max(0)
    scale = (1 - 2 * _MARGIN) / (high - low).max()  # one for both axes: balls stay round
    points = 0.5 + (points - (low + high) / 2) * scale
    kept: list[int] = []
    for i in range(len(points)):
        far = np.abs(points[kept] - points[i]).max(1)  # Linf, for which balls reach farthest
        if len(kept) < count and (far >= np.where(labels[kept] == labels[i], _SPACING, _GAP)).all():
            kept.append(i)
    return Toy(torch.from_numpy(points[kept]).float(), torch.from_numpy(labels[kept]).long(), classes)


def train_toy(data: Toy, *, norm: str = "Linf", eps: float = 0.0, seed: int = 0, steps: int = _STEPS) -> Classifier:
    """A network with two hidden layers; with ``eps`` over 0 trained on the worst points of the balls.

    Adversarial training (Madry et al. 2018, arXiv 1706.06083, equation 2.1): each step first raises the loss within the
    ball around each point, then lowers the loss there.
    """
    check_norm(norm, SECTION_NORMS, "a toy's balls")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 100))
        net = nn.Sequential(nn.Linear(2, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 2))
        starts = torch.rand(steps, *data.x.shape) * 2 - 1
    classifier = Classifier(net, mean=0.5, std=0.25, labels=data.classes)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / steps)
        x = data.x if eps == 0 else _worst(classifier, data, norm, eps, starts[step])
        optimizer.zero_grad()
        F.cross_entropy(net(classifier.preprocess(x)), data.y).backward()
        optimizer.step()
    return classifier


def examine(classifier: Classifier, data: Toy, *, norm: str, eps: float, resolution: int = 201) -> ToyResult:
    """The classifier's answers over the unit square, and which balls hold another class (looked at on a fine lattice)."""
    across = np.linspace(0, 1, resolution)
    predicted, confidence = answers_at(classifier, _points, np.stack(np.meshgrid(across, across), -1).reshape(-1, 2))
    whole = Field(across, across, predicted.reshape(resolution, -1), confidence.reshape(resolution, -1))
    offsets = ball_lattice(norm, eps)  # (n, 2)
    places = (data.x.numpy()[:, None] + offsets).clip(0, 1)  # (N, n, 2)
    answers = answers_at(classifier, _points, places.reshape(-1, 2))[0].reshape(len(data.x), -1)
    wrong = answers != data.y.numpy()[:, None]
    here = int((np.abs(offsets).sum(1) == 0).argmax())
    return ToyResult(whole, ~wrong[:, here], wrong.any(1))


def ball_lattice(norm: str, eps: float, rings: int = 8, corners: int = 48) -> np.ndarray:
    """Points of the two-dimensional ball, its centre first, its rim and its corners among them: (n, 2)."""
    rim = ball_outline(norm, eps, corners)[:-1]
    return np.concatenate([np.zeros((1, 2)), *[rim * (i / rings) for i in range(1, rings + 1)]])


def ball_outline(norm: str, eps: float, corners: int = 48) -> np.ndarray:
    """The rim of the two-dimensional ball, closed: (corners + 1, 2); ``corners`` is a multiple of 8."""
    angles = np.linspace(0, 2 * np.pi, corners + 1)
    ways = np.stack([np.cos(angles), np.sin(angles)], 1)
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[check_norm(norm, SECTION_NORMS, "a toy's balls")]
    return ways * (eps / np.linalg.norm(ways, order, axis=1))[:, None]


def _points(places: np.ndarray) -> Tensor:
    return torch.from_numpy(places).float()


def _worst(classifier: Classifier, data: Toy, norm: str, eps: float, start: Tensor) -> Tensor:
    """The points of the balls to which steepest ascent of the loss leads from ``start`` (N, 2), in balls: (N, 2)."""

    def slope(x: Tensor, _: int) -> Tensor:
        return classifier.gradient(x, lambda logits: F.cross_entropy(logits, data.y, reduction="none"))[1]

    def step(gradient: Tensor, *_: object) -> Tensor:
        return per_sample(eps / 2, gradient) * steepest(gradient, norm)

    begin = project_onto(data.x, data.x + eps * start, norm, eps)
    return ascend(data.x, slope, norm=norm, eps=eps, steps=_ASCENT, step=step, begin=begin)
