"""Planes in the space of images: through three of them, or spanned by an adversarial and a random direction.

A plane is an origin and two orthonormal directions; coordinates are L2 lengths. Where a point of it leaves [0, 1], its
pixels are clipped: no classifier should be asked about a pixel that is blacker than black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.batching import gradients
from sfumato.attacks.losses import LOSSES
from sfumato.attacks.norms import check_norm, flat, norm_of
from sfumato.attacks.pgd import pgd
from sfumato.attacks.square import square
from sfumato.classifiers.classifier import BudgetExceeded
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

SECTION_NORMS = ("Linf", "L2", "L1")
ATTACK_STEPS = 40  # of projected gradient descent, to find the adversarial direction
ATTACK_FACTORS = (1, 2, 4, 8)  # times eps, until one is large enough
_SALT = 0x504C  # keeps these random directions apart from the attacks' own random numbers


class Threat(NamedTuple):
    """Perturbations of size ``eps`` in ``norm`` (Linf, L2 or L1), and the ``seed`` of what is random about them."""

    norm: str
    eps: float
    seed: int = 0


@dataclass(frozen=True)
class Plane:
    """``origin + a first + b second``.

    Args:
        origin: (C, H, W) or of any other shape, float64.
        first, second: of the same shape, orthonormal.
    """

    origin: Tensor
    first: Tensor
    second: Tensor

    def points(self, places: np.ndarray) -> Tensor:
        """The points at (N, 2) coordinates, exactly, in [0, 1] or not: (N, C, H, W) float64."""
        at = torch.as_tensor(np.asarray(places, np.float64)).reshape(-1, 2, *[1] * self.origin.ndim)
        return self.origin + at[:, 0] * self.first + at[:, 1] * self.second

    def images(self, places: np.ndarray) -> Tensor:
        """The images at (N, 2) coordinates, clipped to [0, 1]: (N, C, H, W) float32."""
        return self.points(places).clamp(0, 1).float()

    def coordinates(self, images: Tensor) -> np.ndarray:
        """Where (N, C, H, W) images, projected onto the plane, lie: (N, 2)."""
        away = images.detach().cpu().double() - self.origin
        return torch.stack([(away * way).flatten(1).sum(1) for way in (self.first, self.second)], 1).numpy()

    def units(self, norm: str, eps: float) -> tuple[float, float]:
        """How far along each direction a perturbation has the size ``eps``."""
        sizes = norm_of(torch.stack([self.first, self.second]), check_norm(norm, SECTION_NORMS, "a plane"))
        return eps / float(sizes[0]), eps / float(sizes[1])

    def section(self, norm: str, eps: float, corners: int = 720) -> np.ndarray:
        """The rim of the ball of radius ``eps`` around the origin where the plane cuts it: (corners + 1, 2), closed.

        Exact at each corner. For L2 a circle; for Linf no square but the polygon that the plane happens to cut.
        """
        angles = np.linspace(0, 2 * math.pi, corners + 1)
        ways = np.stack([np.cos(angles), np.sin(angles)], 1)  # (corners + 1, 2)
        flat_ways = torch.from_numpy(ways) @ torch.stack([self.first.flatten(), self.second.flatten()])
        sizes = norm_of(flat_ways, check_norm(norm, SECTION_NORMS, "a plane"))
        return ways * (eps / sizes.numpy())[:, None]


def spanned(origin: Tensor, first: Tensor, second: Tensor) -> Plane:
    """The plane at ``origin`` along ``first``, and along what of ``second`` is orthogonal to it (Gram and Schmidt).

    Raises:
        InputError: directions that are zero or parallel, or of other shapes.
    """
    if not origin.shape == first.shape == second.shape:
        shapes = f"origin {tuple(origin.shape)} and directions {tuple(first.shape)}, {tuple(second.shape)}"
        raise InputError(f"{shapes} differ: give three of one shape")
    origin, first, second = (t.detach().cpu().double() for t in (origin, first, second))
    first = _unit(first, "the first direction is zero")
    rest = second
    for _ in range(2):  # once more takes out what rounding left
        rest = rest - (rest * first).sum() * first
    if float(rest.norm()) < 1e-7 * max(float(second.norm()), 1e-30):
        raise InputError("the two directions are parallel, so they span no plane: give others")
    return Plane(origin, first, _unit(rest, "the second direction is zero"))


def through(images: Tensor) -> Plane:
    """The plane through three images, the first of them its origin (Somepalli et al. 2022, arXiv 2203.08124, section 3).

    Args:
        images: (3, C, H, W).

    Raises:
        InputError: not three images, or three on one line.
    """
    if len(images) != 3:
        raise InputError(f"a plane needs three images, not {len(images)}: give three")
    a, b, c = images.detach().cpu().double()
    try:
        return spanned(a, b - a, c - a)
    except InputError:
        problem = "the three images lie on one line (two may be the same), so no single plane holds them"
        raise InputError(f"{problem}: give others") from None


def random_direction(like: Tensor, norm: str = "L2", seed: int = 0, index: int = 0) -> Tensor:
    """A random direction of L2 length 1: signs for Linf (every pixel changes as much), else normal. Shape of ``like``."""
    streams = Streams(seed, [index], salt=_SALT)
    noise = (streams.sign if norm == "Linf" else streams.normal)(like.shape)[0].double()
    return _unit(noise, "the random direction is zero")


def adversarial_direction(classifier: Classifier, x: Tensor, y: int, threat: Threat, index: int = 0) -> Tensor:
    """From an image to a point where an attack changes its class, as a direction of L2 length 1.

    The point is looked for in the threat's ball, then in ones of twice, four and eight times that; where none
    has another class, it is the one of highest loss in the largest.

    Args:
        x: (C, H, W) in [0, 1].
        y: its true label.

        index: the image's number in its data, which the random numbers belong to.

    Returns:
        Of the shape of ``x``, float64; where nothing changes the loss, a random direction.
    """
    found, label = x, torch.tensor([y])
    for factor in ATTACK_FACTORS:
        found = attacked(classifier, x[None], label, threat._replace(eps=factor * threat.eps), [index])[0]
        if int(classifier.predict(found[None])[0]) != y:
            break
    return _or_random((found - x).cpu().double(), threat.norm, threat.seed, index + 1)


def attacked(
    classifier: Classifier, x: Tensor, y: Tensor, threat: Threat, ids: Sequence[int], steps: int = ATTACK_STEPS
) -> Tensor:
    """Images (B, C, H, W) after projected gradient descent, or Square where the model gives no gradient (a smoothed one)."""
    try:
        return pgd(classifier, x, y, **threat._asdict(), ids=ids, steps=steps, start="clean", loss="margin")
    except BudgetExceeded:
        raise
    except InputError:  # what else may be wrong with the input, the other attack complains about as well
        return square(classifier, x, y, **threat._asdict(), ids=ids, queries=10 * steps)


def gradient_direction(classifier: Classifier, x: Tensor, y: int, *, seed: int = 0) -> tuple[Tensor, float]:
    """The lecture's ``grad_x loss(f(x), y)`` as a direction of L2 length 1, and its length; the loss is cross-entropy."""
    slope = gradients(classifier, x[None], LOSSES.find("ce"), (torch.tensor([y]),))[2][0].cpu().double()
    return _or_random(slope, "L2", seed, 1), float(slope.norm())


def adversarial_plane(classifier: Classifier, x: Tensor, y: int, threat: Threat, index: int = 0) -> Plane:
    """At ``x``, along the adversarial direction (horizontal) and a random one orthogonal to it (vertical).

    The church-window plane of Warde-Farley & Goodfellow 2016 ("Adversarial perturbations of deep neural networks").
    """
    check_norm(threat.norm, SECTION_NORMS, "an adversarial direction")
    if not threat.eps > 0:
        raise InputError(f"eps is {threat.eps:g}: give a size over 0, in units of pixels from 0 to 1")
    way = adversarial_direction(classifier, x, y, threat, index)
    return spanned(x, way, random_direction(x, threat.norm, threat.seed, index))


def _or_random(way: Tensor, norm: str, seed: int, index: int) -> Tensor:
    if float(way.norm()) == 0 or not bool(way.isfinite().all()):
        return random_direction(way, norm, seed, 0x7000_0000 + index)
    return _unit(way, "")


def _unit(way: Tensor, complaint: str) -> Tensor:
    largest = flat(way[None]).abs().amax()
    if float(largest) == 0:
        raise InputError(f"{complaint}: give another")
    way = way / largest  # first, so that the squares of tiny entries do not vanish
    return way / way.norm()
