"""Fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827), and the accuracy at every eps from one run of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, cosine, farthest_norm, unit
from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import dual, norm_of, per_sample, project_box_ball
from sfumato.attacks.registry import minimal
from sfumato.attacks.verify import fooled
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

FIRST_STEP = {"L0": 1.0, "L1": 1.0, "L2": 1.0, "Linf": 10.0}  # Euclidean length of the first step in delta
FIRST_SHARE = {"L0": 0.1, "L1": 0.05, "L2": 0.05, "Linf": 0.05}  # by which eps changes at first
GROWTH = 1.5  # of an L0 ball in which nothing was found yet


@minimal("fmn", "Linf", "L2", "L1", "L0")
def fmn(context: AttackContext, *, steps: int = 200, alpha: float | None = None, gamma: float | None = None) -> Tensor:
    """The closest adversarial example in L0, L1, L2 or Linf (algorithm 1 of the paper).

    Each step first moves ``eps``: to the boundary of the linearised classifier until an adversarial point has been
    seen, then down by the share ``gamma`` where the last point was adversarial and up where it was not. It then
    follows the normalised gradient and projects the perturbation onto the ball of that ``eps`` and into the box.

    Unlike the paper, as long as nothing adversarial was seen ``eps`` grows by half in L0 (by steps of 1 and 5%, most of
    the budget went into getting there), and in L2 the perturbation is stretched to the length ``eps``, as in DDN: a
    boundary that the gradient makes look far is then reached, which led to nearer ones.

    Args: as every attack, see registry.py, and
        steps: gradient evaluations per sample.
        alpha: Euclidean length of the first step; it falls to a hundredth along a cosine (None: 10 for Linf, else 1).
        gamma: by what share ``eps`` changes at first (None: 0.1 for L0, else 0.05); it falls to a fiftieth along a cosine.
    """
    x, norm, classifier, closest = context.x, context.norm, context.classifier, Closest(context)
    first = FIRST_STEP[norm] if alpha is None else alpha
    first_share = FIRST_SHARE[norm] if gamma is None else gamma

    farthest = farthest_norm(x, norm)  # (B,)
    eps = torch.ones_like(farthest) if norm == "L0" else torch.full_like(farthest, torch.inf)
    delta = torch.zeros_like(x)
    values = x[0].numel()
    for step in range(steps):
        left = cosine(step, steps)
        share = first_share * (0.02 + 0.98 * left)
        logits, gradient = classifier.gradient(x + delta, context.margin)
        value = context.margin(logits)
        adversarial = value > 0
        closest.offer(x + delta, adversarial)
        nothing = closest.size == torch.inf  # (B,)
        if norm == "L0":
            fewer = torch.minimum(torch.minimum(eps - 1, (eps * (1 - share)).floor()), closest.size)
            more = torch.where(nothing, (eps * GROWTH).ceil(), torch.maximum(eps + 1, (eps * (1 + share)).floor()))
            eps = torch.where(adversarial, fewer, more)
        else:
            to_boundary = value.abs() / norm_of(gradient, dual(norm)).clamp(min=1e-12)
            # The paper goes to the linearised boundary; on it, a linear classifier would never be fooled.
            reach = torch.where(nothing, norm_of(delta, norm) + to_boundary, eps)
            outside = reach * (1 + share)
            eps = torch.where(adversarial, torch.minimum(eps * (1 - share), closest.size), outside)
        eps = torch.minimum(eps.clamp(min=0), farthest).to(x.dtype)
        # A step far longer than the ball leaves no trace of earlier ones; the paper's length is a cap here.
        length = (0.01 + 0.99 * left) * torch.clamp(2 * _radius(eps, norm, values), max=first)
        delta = delta + per_sample(length, x) * unit(gradient)
        if norm == "L2":
            delta = torch.where(per_sample(nothing, x) > 0, unit(delta) * per_sample(eps, x), delta)
        # Into box and ball at once: clipped afterwards, most of an L1 or L0 step would be lost.
        delta = project_box_ball(x, delta, norm, eps)
    closest.asked(x + delta)
    return closest.x_adv if norm == "L0" else closest.tightened()


def _radius(eps: Tensor, norm: str, values: int) -> Tensor:
    """(B,) how far the ball reaches in L2 inside the box."""
    if norm == "L0":
        return eps.sqrt()
    return eps * math.sqrt(values) if norm == "Linf" else eps


def accuracy_curve(
    classifier: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, eps_grid: Sequence[float] | Tensor
) -> Tensor:
    """Robust accuracy at every eps, from one run of an untargeted minimal-norm attack.

    A sample is robust at eps when it is classified correctly and its adversarial example is farther than eps, or
    does not fool the classifier. What one attack finds bounds the true accuracy from above.

    Args:
        x: (B, ...) clean pixels in [0, 1].
        y: (B,) true labels.
        x_adv: (B, ...) what the attack returned.
        norm: the norm that it minimised.
        eps_grid: (E,) sizes, in that norm's units on [0, 1] pixels.

    Returns:
        (E,) float64 in [0, 1], non-increasing in eps; at eps 0 the clean accuracy.

    Raises:
        InputError: no samples, or a negative eps.
    """
    grid = torch.as_tensor(eps_grid, dtype=torch.float64, device=x.device).flatten()
    if not len(x):
        raise InputError("the accuracy curve has no samples: give at least one")
    if (grid < 0).any():
        raise InputError(f"eps {float(grid.min())} is negative: give sizes of 0 or more")
    distance = norm_of(x_adv - x, norm).double()
    distance[~fooled(classifier, x_adv, y, False)] = torch.inf
    distance[fooled(classifier, x, y, False)] = -torch.inf
    # A millionth of slack, as in the fixed-eps attacks' own promise: a distance that is eps up to rounding counts.
    return (distance[None, :] > grid[:, None] + 1e-6).double().mean(1)
