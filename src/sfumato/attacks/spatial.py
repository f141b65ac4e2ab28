"""The worst rotation and shift (Engstrom et al. 2019, arXiv 1712.02779): no norm ball holds what a person hardly sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.attacks.losses import margin, toward
from sfumato.attacks.registry import ATTACKS
from sfumato.core.errors import InputError, nearest
from sfumato.core.streams import streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

SEARCHES = ("grid", "random")
OUTSIDES = ("zeros", "border", "reflection")


@ATTACKS.add("spatial")
def spatial(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    degrees: float = 30.0,
    shift: float = 3.0,
    search: str = "grid",
    angles: int = 31,
    shifts: int = 5,
    trials: int = 100,
    outside: str = "zeros",
) -> Tensor:
    """The rotation and shift within bounds at which the classifier errs most; no norm bounds it.

    Every candidate is tried for every sample, the image itself first, and the one with the largest margin is returned
    (the paper's grid search and worst-of-k; it found gradients to be of little use here).

    Args: as every attack, see registry.py, of images (B, C, H, W), and
        degrees: the largest rotation either way.
        shift: the largest shift, in pixels, along each axis.
        search: "grid": ``angles * shifts^2`` candidates, evenly spaced; "random": ``trials`` uniform ones a sample.
        outside: what comes in from beyond the edge: "zeros", "border" (the edge pixel) or "reflection".

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        InputError: images of another rank, negative bounds, an unknown search or outside.
    """
    _check(x, degrees, shift, search, outside)
    raised = toward(margin, targeted)
    with classifier.ready():
        worst, highest = x.detach().clone(), raised(classifier.logits(x), y)
        if search == "grid":
            candidates = itertools.product(_even(degrees, angles), _even(shift, shifts), _even(shift, shifts))
            moves = (x.new_tensor(c).expand(len(x), 3) for c in candidates if any(c))
        else:
            streams = streams_for(x, seed, ids)
            bounds = x.new_tensor([degrees, shift, shift])
            moves = (streams.uniform((3,), -1, 1).to(x) * bounds for _ in range(trials))
        for move in moves:  # (B, 3)
            moved = rigid(x, *move.unbind(1), outside=outside)
            value = raised(classifier.logits(moved), y)
            better = value > highest
            worst[better], highest = moved[better], torch.where(better, value, highest)
    return worst


def rigid(x: Tensor, degrees: Tensor, right: Tensor, down: Tensor, *, outside: str = "zeros") -> Tensor:
    """Images turned counter-clockwise about their centre and then shifted, with bilinear interpolation.

    Args:
        x: (B, C, H, W).
        degrees, right, down: (B,) angles, and shifts in pixels.
        outside: "zeros", "border" or "reflection".

    Returns:
        (B, C, H, W) in the range of ``x`` and 0; a whole-pixel shift without rotation is exact up to rounding.
    """
    height, width = x.shape[-2:]
    angle = degrees * math.pi / 180
    cos, sin = angle.cos(), angle.sin()
    # affine_grid asks where each output pixel comes from, in units where the image spans [-1, 1]: undo the shift, then
    # turn back. Rows point down, so that counter-clockwise on the screen is this sign of sin.
    x_shift, y_shift = 2 * right / width, 2 * down / height
    first = torch.stack([cos, -sin * height / width, -cos * x_shift + sin * y_shift * height / width], 1)
    second = torch.stack([sin * width / height, cos, -sin * x_shift * width / height - cos * y_shift], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=outside, align_corners=False).clamp(0, 1)


def _even(bound: float, count: int) -> list[float]:
    """``count`` values from -bound to bound, evenly spaced, 0 among them where count is odd; just 0 for a bound of 0."""
    if bound == 0 or count == 1:
        return [0.0]
    return [bound * (2 * i - (count - 1)) / (count - 1) for i in range(count)]


def _check(x: Tensor, degrees: float, shift: float, search: str, outside: str) -> None:
    if x.ndim != 4:
        raise InputError(f"the spatial attack needs images (B, C, H, W), not a tensor of shape {tuple(x.shape)}")
    if degrees < 0 or shift < 0:
        raise InputError(f"degrees {degrees} and shift {shift} must not be negative: give the largest either way")
    if search not in SEARCHES:
        raise InputError(f"unknown search {search!r}: {nearest(search, SEARCHES)}")
    if outside not in OUTSIDES:
        raise InputError(f"unknown outside {outside!r}: {nearest(outside, OUTSIDES)}")
