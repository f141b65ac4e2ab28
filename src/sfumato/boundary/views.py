"""What each figure shows, computed: three images, adversarial against random, church windows, along the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.losses import margin
from sfumato.boundary.fields import Field, Path, along, answers_of, crossing, field, path
from sfumato.boundary.planes import Plane, Threat, attacked, gradient_direction, random_direction, through
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

BORDER = 0.3  # of the longer side is shown beyond the three images: room for their thumbnails
LEAST_WINDOW = 2.0  # in eps: what a church window shows at least
LEAST_REACH, MOST_REACH = 3.0, 12.0  # in eps: what is shown around an image at least and at most
FARTHEST = 20.0  # in eps: how far along a line a change of class is looked for
RANDOM_PATHS = 5
CANDIDATES = 64  # images among which the one in the middle is looked for
_LINE_POINTS = 161
_PAST = 1.01  # times the distance of a boundary: behind it, whatever the rounding of another batch


@dataclass(frozen=True)
class ThreeImages:
    """A classifier on the plane through three images: ``places`` (3, 2) are theirs."""

    field: Field
    places: np.ndarray
    images: Tensor  # (3, C, H, W)


@dataclass(frozen=True)
class Directions:
    """A classifier around one image, along an adversarial direction (across) and a random one (up), in units of eps.

    Attributes:
        field: in units of eps along each direction.
        rim: (n, 2) the rim of the eps ball, in the same units.
        predicted: the class at the image; ``becomes`` the one behind the boundary in the adversarial direction (None: none).
        changes: distances, in eps, to the first change of class in the adversarial and in the random direction.
        farthest: distance, in eps, up to which a change was looked for.
        images: (3, C, H, W) the image; where the class has just changed (else at 1 eps); as far in the random direction.
        places: (3, 2) theirs.
        borrowed: whether the plane is that of another classifier.
    """

    field: Field
    rim: np.ndarray
    predicted: int
    becomes: int | None
    changes: tuple[float, float]
    farthest: float
    images: Tensor
    places: np.ndarray
    borrowed: bool = False


@dataclass(frozen=True)
class Windows:
    """Church windows: a Field in units of eps around each of n images, of labels (n,), and the rims of their balls."""

    fields: list[Field]
    rims: list[np.ndarray]
    labels: np.ndarray
    reach: float

    def leaves(self, upward: bool = False) -> np.ndarray:
        """How far, in eps, to the first cell to the right (or ``upward``) with another class; (n,), infinite for none."""
        each = zip(self.fields, self.labels.tolist(), strict=True)
        return np.array([_leaves(field, label, upward) for field, label in each])


@dataclass(frozen=True)
class Ascent:
    """Along ``x + a grad loss`` and along random directions of the same length.

    Attributes:
        ascent: the path along the gradient; random: those along random directions.
        slope: L2 length of the gradient at the image.
        change: length of the step at which the class first changes (infinite: nowhere looked at).
        predicted: the class at the image; ``becomes`` the one after the change (None: none).
        images: (3, C, H, W) at lengths ``at`` (3,); answers: (3,) the class of each and (3,) its probability.
        label: the true one.
    """

    ascent: Path
    random: list[Path]
    slope: float
    change: float
    predicted: int
    becomes: int | None
    images: Tensor
    at: np.ndarray
    answers: tuple[np.ndarray, np.ndarray]
    label: int

    @property
    def strays(self) -> float:
        """The shortest step on any of the random paths that leaves the image's class; infinite for none."""
        left = [each.steps[each.predicted != self.predicted] for each in self.random]
        return min((float(steps[0]) for steps in left if len(steps)), default=math.inf)


def three_images(classifier: Classifier, images: Tensor, resolution: int, plane: Plane | None = None) -> ThreeImages:
    """The plane through three images (3, C, H, W), shown over a square around them; InputError for three on a line."""
    plane = plane or through(images)
    places = plane.coordinates(images)
    low, high = places.min(0), places.max(0)
    half = (high - low).max() * (0.5 + BORDER)
    middle = (low + high) / 2
    across, up = ((float(at - half), float(at + half)) for at in middle)
    return ThreeImages(field(classifier, plane, across, up, resolution), places, images)


def around(classifier: Classifier, x: Tensor, plane: Plane, threat: Threat) -> Directions:
    """The image (C, H, W) at the origin of its plane: how far the class holds along both directions. No field yet."""
    norm, eps, _ = threat
    first, second = units = plane.units(norm, eps)
    farthest = min(FARTHEST, 1 / eps) if norm == "Linf" else FARTHEST
    change = crossing(classifier, x, plane.first, farthest * first) / first
    other = crossing(classifier, x, plane.second, farthest * second) / second
    step = _PAST * change if math.isfinite(change) else 1.0
    places = np.array([[0.0, 0.0], [step, 0.0], [0.0, step]])
    images = plane.images(places * units)
    predicted, after = (int(c) for c in answers_of(classifier, images)[0][:2])
    empty = Field(np.zeros(1), np.zeros(1), np.zeros((1, 1), int), np.zeros((1, 1)))
    return Directions(
        field=empty,
        rim=plane.section(norm, eps) / units,
        predicted=predicted,
        becomes=after if after != predicted else None,
        changes=(change, other),
        farthest=farthest,
        images=images,
        places=places,
    )


def reach_of(views: Sequence[Directions]) -> float:
    """How far, in eps, to look around the images of all views: past the boundary, within limits, the same for all."""
    far = max((view.changes[0] for view in views if math.isfinite(view.changes[0])), default=0.0)
    return float(min(max(LEAST_REACH, math.ceil(1.7 * far)), MOST_REACH))


def windows(
    classifier: Classifier, planes: Sequence[Plane], y: Tensor, threat: Threat, reach: float, resolution: int
) -> Windows:
    """Church windows of images with labels (B,) at the origins of their planes (Warde-Farley & Goodfellow 2016)."""
    fields = [field_in_eps(classifier, plane, threat, reach, resolution) for plane in planes]
    rims = [plane.section(threat.norm, threat.eps) / plane.units(threat.norm, threat.eps) for plane in planes]
    return Windows(fields, rims, y.cpu().numpy(), reach)


def window_reach(classifier: Classifier, planes: Sequence[Plane], threat: Threat) -> float:
    """How far, in eps, windows have to reach so that about half of them show another class; within limits."""
    far = []
    for plane in planes:
        unit, _ = plane.units(threat.norm, threat.eps)
        far.append(min(crossing(classifier, plane.origin, plane.first, MOST_REACH * unit, 49) / unit, MOST_REACH))
    return float(min(max(LEAST_WINDOW, math.ceil(1.3 * float(np.median(far)))), MOST_REACH))


def ascent(
    classifier: Classifier, x: Tensor, y: int, *, seed: int = 0, index: int = 0, shown: float | None = None
) -> Ascent:
    """Loss and confidence along the gradient of the loss at ``x`` (C, H, W) and along random directions.

    ``shown``: length of the longest step; by default some way past the boundary.
    """
    way, slope = gradient_direction(classifier, x, y, seed=seed)
    farthest = 0.25 * math.sqrt(x.numel())  # every pixel by a quarter
    change = crossing(classifier, x, way, farthest)
    steps = np.linspace(0, shown or min(2.5 * change, farthest), _LINE_POINTS)
    random = [random_direction(x, "L2", seed, (index << 4) + i) for i in range(RANDOM_PATHS)]
    at = np.array([0.0, _PAST * change if math.isfinite(change) else steps[-1] / 2, steps[-1]])
    images = along(x, way, at)
    answers = answers_of(classifier, images)
    predicted, after = (int(c) for c in answers[0][:2])
    return Ascent(
        ascent=path(classifier, x, y, way, steps),
        random=[path(classifier, x, y, each, steps) for each in random],
        slope=slope,
        change=change,
        predicted=predicted,
        becomes=after if after != predicted else None,
        images=images,
        at=at,
        answers=answers,
        label=y,
    )


def chosen(classifiers: Sequence[Classifier], x: Tensor, y: Tensor, ids: Sequence[int], threat: Threat) -> list[int]:
    """Rows of three images that all classifiers get right, of three classes where there are as many.

    The first is, of up to 64 images, the typical one among those where an attack on the first classifier succeeds within
    eps: the least sure classifier is as sure of it as of their median (if there is none, the nearest to falling). The
    others are the first right ones of other classes.

    Raises:
        InputError: fewer than three images are classified right.
    """
    right = right_rows(classifiers, x, y)
    if len(right) < 3:
        problem = f"only {len(right)} of {len(x)} images are classified right, and the figure needs three"
        raise InputError(f"{problem}: check that the labels are the classifier's, or name images by --index")
    some = torch.tensor(right[:CANDIDATES])
    numbers = [ids[row] for row in some.tolist()]
    worst = attacked(classifiers[0], x[some], y[some], threat, numbers, steps=10)
    sure = -torch.stack([margin(classifier.logits(x[some]), y[some]) for classifier in classifiers]).amax(0)
    margins = margin(classifiers[0].logits(worst), y[some])
    crossed = margins > 0
    typical = margins.argmax()
    if bool(crossed.any()):
        typical = (sure - sure[crossed].median()).abs().where(crossed, torch.inf).argmin()
    rows = [int(some[typical])]
    for fresh in (True, False):  # other classes, then whatever there is
        for row in right:
            if len(rows) < 3 and row not in rows and not (fresh and y[row] in y[rows]):
                rows.append(row)
    return rows


def right_rows(classifiers: Sequence[Classifier], x: Tensor, y: Tensor) -> list[int]:
    """The rows of the images (B, C, H, W) that all classifiers get right."""
    right = torch.stack([classifier.predict(x).cpu() == y.cpu() for classifier in classifiers]).all(0)
    return right.nonzero().flatten().tolist()


def field_in_eps(classifier: Classifier, plane: Plane, threat: Threat, reach: float, resolution: int) -> Field:
    """A field ``reach`` eps either way, with its coordinates in eps."""
    first, second = plane.units(threat.norm, threat.eps)
    found = field(classifier, plane, (-reach * first, reach * first), (-reach * second, reach * second), resolution)
    return replace(found, across=found.across / first, up=found.up / second)


def _leaves(each: Field, label: int, upward: bool) -> float:
    middle_row, middle_column = len(each.up) // 2, len(each.across) // 2
    steps, predicted = each.across, each.predicted[middle_row]
    if upward:
        steps, predicted = each.up, each.predicted[:, middle_column]
    left = steps[(steps > -1e-9) & (predicted != label)]
    return float(left[0]) if len(left) else math.inf
