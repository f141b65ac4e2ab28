"""What a classifier says all over a plane, and along a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.losses import cross_entropy
from sfumato.boundary.planes import Plane
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

_BISECTIONS = 24  # of a step between two points, to find where the class changes


@dataclass(frozen=True)
class Field:
    """The classifier's answers on a grid over a plane.

    Attributes:
        across, up: (n,) and (m,) coordinates, rising.
        predicted: (m, n) the class at ``(across[j], up[i])``.
        confidence: (m, n) its probability.
    """

    across: np.ndarray
    up: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of the cells, of which the coordinates are the centres."""
        wide, high = self.across[1] - self.across[0], self.up[1] - self.up[0]
        return (self.across[0] - wide / 2, self.across[-1] + wide / 2, self.up[0] - high / 2, self.up[-1] + high / 2)


@dataclass(frozen=True)
class Path:
    """The classifier's answers along a line.

    Attributes:
        steps: (n,) L2 lengths from the start.
        loss: (n,) cross-entropy at the true label.
        confidence: (n,) the probability of the true label.
        predicted: (n,) the class.
    """

    steps: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    predicted: np.ndarray


def field(
    classifier: Classifier,
    plane: Plane,
    across: tuple[float, float],
    up: tuple[float, float],
    resolution: int | tuple[int, int] = 101,
) -> Field:
    """Ask the classifier at every point of a grid, in batches of its size.

    Args:
        across, up: the range of each coordinate.
        resolution: points along both, or (along across, along up); 2 or more.

    Raises:
        InputError: an empty range or fewer than 2 points.
    """
    wide, high = (resolution, resolution) if isinstance(resolution, int) else resolution
    if wide < 2 or high < 2 or not (across[0] < across[1] and up[0] < up[1]):
        empty = f"a grid of {wide}x{high} points over {across} and {up} is empty"
        raise InputError(f"{empty}: give 2 or more points and ranges that rise")
    horizontal, vertical = np.linspace(*across, wide), np.linspace(*up, high)
    places = np.stack(np.meshgrid(horizontal, vertical), -1).reshape(-1, 2)  # (m n, 2), row by row
    predicted, confidence = answers_at(classifier, plane.images, places)
    return Field(horizontal, vertical, predicted.reshape(high, wide), confidence.reshape(high, wide))


def answers_at(
    classifier: Classifier, images: Callable[[np.ndarray], Tensor], places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The class (N,) and its probability (N,) at (N, 2) places; ``images`` makes (n, C, H, W) of some of them."""
    with classifier.ready():
        size = classifier.batch_size
        parts = [answers_of(classifier, images(places[i : i + size])) for i in range(0, len(places), size)]
    predicted, confidence = zip(*parts, strict=True)
    return np.concatenate(predicted), np.concatenate(confidence)


def answers_of(classifier: Classifier, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The class (N,) of each image (N, C, H, W) and its probability (N,)."""
    probability, winner = classifier.logits(images.to(classifier.device)).double().softmax(1).max(1)
    return winner.cpu().numpy(), probability.cpu().numpy()


def path(classifier: Classifier, x: Tensor, y: int, way: Tensor, steps: np.ndarray) -> Path:
    """The loss and the class at ``x + a way``, clipped to [0, 1], for each ``a`` of ``steps`` (n,).

    Args:
        x: (C, H, W) in [0, 1].
        y: its true label.
        way: the direction, of the shape of ``x``.
    """
    logits = classifier.logits(along(x, way, steps).to(classifier.device)).double().cpu()  # (n, K)
    labels = torch.full((len(steps),), y)
    return Path(
        steps=np.asarray(steps, np.float64),
        loss=cross_entropy(logits, labels).numpy(),
        confidence=logits.softmax(1)[:, y].numpy(),
        predicted=logits.argmax(1).numpy(),
    )


def along(x: Tensor, way: Tensor, steps: np.ndarray) -> Tensor:
    """``x + a way`` clipped to [0, 1], for each ``a`` of ``steps`` (n,): (n, C, H, W) float32."""
    sizes = torch.as_tensor(np.asarray(steps, np.float64)).reshape(-1, *[1] * x.ndim)
    return (x.detach().cpu().double() + sizes * way.double()).clamp(0, 1).float()


def crossing(classifier: Classifier, x: Tensor, way: Tensor, farthest: float, points: int = 129) -> float:
    """How far from ``x`` along ``way`` the class first changes; infinite where it does not up to ``farthest``.

    Looks at ``points`` evenly spaced places and bisects between the two where it changes: a region narrower than their
    distance can be missed.
    """
    steps = np.linspace(0, farthest, points)
    predicted = classifier.predict(along(x, way, steps).to(classifier.device)).cpu().numpy()
    changed = np.flatnonzero(predicted != predicted[0])
    if not len(changed):
        return math.inf
    low, high = steps[changed[0] - 1], steps[changed[0]]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        answer = classifier.predict(along(x, way, np.array([middle])).to(classifier.device)).cpu().numpy()
        low, high = (middle, high) if answer[0] == predicted[0] else (low, middle)
    return float(high)
