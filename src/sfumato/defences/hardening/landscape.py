"""The loss landscape of a classifier around its images, before and after hardening.

A robust classifier's loss rises slowly around an image (gradient norm), nearly evenly (local linearity), and its
decision boundary is far (distance). The last two need an attack, and are what that attack finds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.attacks.ascent import ascend
from sfumato.attacks.batching import checked, gradients, random_start
from sfumato.attacks.fmn import fmn
from sfumato.attacks.losses import cross_entropy
from sfumato.attacks.norms import dual, flat, norm_of, project_onto
from sfumato.attacks.pgd import pgd
from sfumato.attacks.verify import fooled
from sfumato.classifiers.accuracy import Accuracy
from sfumato.core.errors import InputError
from sfumato.core.files import atomic_write, finite
from sfumato.core.streams import streams_for
from sfumato.defences.hardening.adversarial_training import Threat

if TYPE_CHECKING:
    from sfumato.boundary import Boundaries
    from sfumato.classifiers import Classifier

SCHEMA = "sfumato.smoothness/1"
FILE, PICTURE = "smoothness.json", "boundary.png"
PGD_STEPS = 20
GAP_STEPS = 10
DISTANCE_STEPS = 100
DISTANCE_IMAGES = 200  # the most expensive of all, and a median wants fewer
PICTURED = 96  # images among which the views of the boundary find theirs
_SALT = 0x5340  # keeps the random points apart from those of attacks with the same seed


@dataclass(frozen=True)
class LossLandscape:
    """What was found around some images.

    Attributes:
        clean: accuracy.
        robust: accuracy under PGD of 20 steps within the ball; the standard ensemble finds more (``sfumato audit``).
        gradient: mean over images of the cross-entropy's gradient, in the norm dual to the threat's: how much the loss
            rises along the steepest perturbation, for each unit of its size.
        gap: mean of ``max over ||d|| <= eps of |loss(x + d) - loss(x) - <d, grad>|``, the local linearity of Qin et al.
            2019 (arXiv 1907.02610, equation 5), as ten steps of PGD find it; 0 where the loss is linear.
        alignment: mean cosine of the gradients at x and at a random point of the ball (Andriushchenko & Flammarion
            2020, arXiv 2007.02617, equation 3): 1 where the gradient keeps its direction.
        distance: the median of the distance to the decision boundary, 0 for an image that is wrong, as FMN finds it.
    """

    clean: Accuracy
    robust: Accuracy
    gradient: float
    gap: float
    alignment: float
    distance: float

    def to_json(self) -> dict[str, Any]:
        return {name: each.to_json() if isinstance(each, Accuracy) else each for name, each in vars(self).items()}


def loss_landscape(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float = 8 / 255,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LossLandscape:
    """Measure the loss landscape of a classifier around images.

    Args:
        classifier: any that gives gradients.
        x: (B, C, H, W) pixels in [0, 1].
        y: (B,) labels, as the classifier numbers them.
        norm: Linf or L2.
        eps: radius of the ball, of pixels in [0, 1].
        seed: of random starts and points.
        progress: called with (measurements done, in all).

    Raises:
        InputError: no images, an unknown norm, an eps that is not over 0.
    """
    Threat(norm, eps)
    if not len(x):
        raise InputError("there are no images to measure on: give 1 or more")
    x, y, _ = checked(x, y, None)

    def robust() -> Tensor:
        x_adv = pgd(classifier, x, y, norm=norm, eps=eps, steps=PGD_STEPS, seed=seed)
        return ~fooled(classifier, x_adv, y)

    few = slice(0, DISTANCE_IMAGES)
    parts: tuple[Callable[[], Any], ...] = (
        lambda: Accuracy(int((classifier.predict(x) == y).sum()), len(x)),
        lambda: Accuracy(int(robust().sum()), len(x)),
        lambda: float(gradient_norms(classifier, x, y, norm).mean()),
        lambda: float(linearity_gaps(classifier, x, y, norm, eps, seed).mean()),
        lambda: float(alignments(classifier, x, y, norm, eps, seed).mean()),
        lambda: float(distances(classifier, x[few], y[few], norm).quantile(0.5, interpolation="lower")),
    )
    found = []
    with classifier.ready():
        for part in parts:
            found.append(part())
            if progress is not None:
                progress(len(found), len(parts))
    return LossLandscape(*found)


def gradient_norms(classifier: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """(B,) the dual norm of the cross-entropy's gradient with respect to the pixels."""
    return norm_of(gradients(classifier, x, cross_entropy, (y,))[2], dual(norm))


def linearity_gaps(
    classifier: Classifier, x: Tensor, y: Tensor, norm: str, eps: float, seed: int = 0, steps: int = GAP_STEPS
) -> Tensor:
    """(B,) how far the loss is from its linearisation at x, at the worst point of ball and box that PGD finds.

    From a random start and from the point across: a loss that bends upwards departs on both sides of x.
    """
    _, here, slope = gradients(classifier, x, cross_entropy, (y,))
    radius = x.new_full((len(x),), eps)
    highest = torch.zeros_like(here)

    def away(moved: Tensor, _: int) -> Tensor:
        """The gradient of the departure from linear, the largest of which are kept."""
        nonlocal highest
        there, rising = gradients(classifier, moved, cross_entropy, (y,))[1:]
        gap = there - here - flat((moved - x) * slope).sum(1).to(here.dtype)
        highest = torch.maximum(highest, gap.abs())
        return (rising - slope) * gap.sign().to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    start = random_start(x, norm, radius, streams_for(x, seed, None, _SALT))
    for begin in (start, project_onto(x, 2 * x - start, norm, radius)):
        away(ascend(x, away, norm=norm, eps=radius, steps=steps, begin=begin), steps)
    return highest


def alignments(classifier: Classifier, x: Tensor, y: Tensor, norm: str, eps: float, seed: int = 0) -> Tensor:
    """(B,) the cosine between the gradients at x and at a random point of box and ball; 0 where either vanishes."""
    moved = random_start(x, norm, x.new_full((len(x),), eps), streams_for(x, seed, None, _SALT + 1))
    first, second = (gradients(classifier, each, cross_entropy, (y,))[2] for each in (x, moved))
    return F.cosine_similarity(flat(first), flat(second), dim=1, eps=torch.finfo(x.dtype).tiny)


def distances(classifier: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """(B,) how far the nearest image is that is taken for something else: 0 for what is wrong, inf where none is found."""
    found = fmn(classifier, x, y, norm=norm, steps=DISTANCE_STEPS)
    return norm_of(found - x, norm).masked_fill(~fooled(classifier, found, y), math.inf)


def picture(before: Classifier, after: Classifier, x: Tensor, y: Tensor, **settings: Any) -> Boundaries | str:
    """The decision boundaries of both on the same axes; or why there are none, where too few images are right.

    ``settings``: ``norm``, ``eps``, ``names`` of the two, ``seed``, as in ``boundary``.
    """
    from sfumato.boundary import boundary

    try:
        return boundary(before, x[:PICTURED], y[:PICTURED], other=after, **settings)
    except InputError as error:
        return str(error)


def report(before: LossLandscape, after: LossLandscape, **about: Any) -> dict[str, Any]:
    """Both as JSON values, with what else there is to tell."""
    return {"schema": SCHEMA, **about, "before": before.to_json(), "after": after.to_json()}


def save_report(folder: Path, found: dict[str, Any], views: Boundaries | str) -> None:
    """``smoothness.json`` and, where there is one, ``boundary.png``."""
    if not isinstance(views, str):
        views.save(folder / PICTURE)
    atomic_write(folder / FILE, json.dumps(finite(found), indent=2) + "\n")


def table(before: LossLandscape, after: LossLandscape, norm: str, eps: float) -> list[str]:
    """The comparison, a line each."""
    rows = [
        ("clean accuracy", _share(before.clean), _share(after.clean)),
        (f"robust accuracy (PGD, {norm} {eps:g})", _share(before.robust), _share(after.robust)),
        (f"gradient norm ({dual(norm)})", f"{before.gradient:.3g}", f"{after.gradient:.3g}"),
        ("departure from linear", f"{before.gap:.3g}", f"{after.gap:.3g}"),
        ("gradient alignment", f"{before.alignment:.3g}", f"{after.alignment:.3g}"),
        (f"distance to the boundary ({norm})", f"{before.distance:.3g}", f"{after.distance:.3g}"),
    ]
    wide = max(len(name) for name, _, _ in rows)
    head = f"  {'':<{wide}}  {'before':<26}  after"
    return [head, *(f"  {name:<{wide}}  {was:<26}  {now}" for name, was, now in rows)]


def _share(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:>6.1%} ({low:.1%} to {high:.1%})"
