"""Projected gradient descent: many small steps of steepest ascent, each projected back into ball and box.

BIM without a random start (Kurakin et al. 2017, arXiv 1607.02533), PGD with one (Madry et al. 2018, arXiv 1706.06083),
MI-FGSM with momentum (Dong et al. 2018, arXiv 1710.06081, algorithm 1). A sample leaves as soon as it is fooled, or when
its path has come back to a point where it has been: at a constant step without momentum all would be the same again ("Stop
Walking in Circles!", arXiv 2503.19347).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.ascent import Step, ascend
from sfumato.attacks.context import AttackContext
from sfumato.attacks.losses import LOSSES, Loss, toward
from sfumato.attacks.norms import flat, norm_of, per_sample
from sfumato.attacks.registry import within_eps
from sfumato.attacks.verify import fooled
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams


class Ascent(NamedTuple):
    """How far a run came: the first adversarial point of each sample, or else the one of highest loss."""

    x_adv: Tensor  # (B, ...)
    loss: Tensor  # (B,)
    fooled: Tensor  # (B,) bool


@within_eps("pgd")
def pgd(
    context: AttackContext,
    *,
    steps: int = 40,
    step: float | None = None,
    restarts: int = 1,
    start: str = "random",
    momentum: float = 0.0,
    loss: str = "ce",
) -> Tensor:
    """Projected gradient descent on ball and box.

    Args: as every attack, see registry.py, and
        steps: gradients in each run; one more forward pass looks at the last point.
        step: length of every step as a share of ``eps``. Default: falling from 2 to 0.02 geometrically, which crosses
            the ball first and settles last; on robust classifiers it is both stronger and sooner done than a constant.
        restarts: runs, each on the samples that are not fooled yet.
        start: "random", or "clean" to begin at ``x`` (then restarts make no difference).
        momentum: share of the last direction that is kept, 0 (PGD) to 1 (MI-FGSM).
        loss: "ce", "margin" or "dlr".

    Returns:
        (B, ...) in the box and the ball; where nothing was found, the point of highest loss.
    """
    if steps < 1 or restarts < 1:
        raise InputError(f"pgd with {steps} steps and {restarts} restarts does nothing: give 1 or more of each")
    if start not in ("random", "clean"):
        raise InputError(f"unknown start {start!r} for pgd: choose 'random' or 'clean'")
    run = Ascending(
        steps, step, toward(LOSSES.find(loss), context.targeted), momentum, step is not None and not momentum
    )
    x, classifier, targeted = context.x, context.classifier, context.targeted
    result, highest = x.clone(), x.new_full((len(x),), -torch.inf)
    rows = torch.arange(len(x), device=x.device)
    with classifier.ready():
        for restart in range(restarts):
            if len(rows) == 0:
                break
            some = context[rows]
            found = ascend_until_fooled(some, some.random_start(restart) if start == "random" else some.x, run)
            hit = found.fooled.clone()
            hit[found.fooled] = fooled(classifier, found.x_adv[found.fooled], some.y[found.fooled], targeted)
            better = hit | (found.loss > highest[rows])
            result[rows[better]] = found.x_adv[better]
            highest[rows[better]] = found.loss[better]
            rows = rows[~hit]
    return result


class Ascending(NamedTuple):
    """How a run ascends."""

    steps: int
    step: Step | float | None  # as in ``ascend``
    loss: Loss  # to be raised
    momentum: float = 0.0
    repeats: bool = False  # a step depends on the point alone: samples that come back to a point leave


def ascend_until_fooled(context: AttackContext, begin: Tensor, how: Ascending) -> Ascent:
    """One run from ``begin`` (B, ...); samples leave as soon as they are fooled, or go in a circle."""
    run = _Run(context, begin, how)
    ball = {"norm": context.norm, "eps": context.eps}
    x_adv = ascend(context.x, run.slope, **ball, steps=how.steps, step=how.step, begin=begin)
    if len(x_adv):  # only a look at where the last step led
        logits = context.answers(x_adv)
        run.record(x_adv, logits, how.loss(logits, run.context.y))
    return run.found


class _Run:
    """The books of a run: what was found, and the samples that have not left, one row each."""

    def __init__(self, context: AttackContext, begin: Tensor, how: Ascending) -> None:
        count, device = len(context), begin.device
        self.context, self.how = context, how
        self.rows = torch.arange(count, device=device)  # (n,) where each belongs in what is found
        self.velocity = torch.zeros_like(begin)
        self.circles = _Circles(begin) if how.repeats else None
        highest = begin.new_full((count,), -torch.inf)
        self.found = Ascent(begin.clone(), highest, torch.zeros(count, dtype=torch.bool, device=device))
        self.hit = self.found.fooled

    def slope(self, x_adv: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The gradient at ``x_adv`` (n, ...), with momentum that of MI-FGSM; (n,) who is neither fooled nor in a circle."""
        logits, losses, slope = self.context.gradients(x_adv, self.how.loss, (self.context.y,))
        self.record(x_adv, logits, losses)
        if self.how.momentum:
            mean = norm_of(slope, "L1").clamp_min(torch.finfo(slope.dtype).tiny)
            self.velocity = slope = self.how.momentum * self.velocity + slope / per_sample(mean, slope)
        going = ~self.hit if self.circles is None else ~self.hit & ~self.circles.closed(x_adv)
        if not bool(going.all()):
            self.context, self.rows, self.velocity = self.context[going], self.rows[going], self.velocity[going]
            if self.circles is not None:
                self.circles.seen = self.circles.seen[going]
        return slope, going

    def record(self, x_adv: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Keep the points that fool, or raise the loss."""
        self.hit = self.context.reached(logits)
        better = self.hit | (losses > self.found.loss[self.rows])
        self.found.x_adv[self.rows[better]] = x_adv[better]
        self.found.loss[self.rows[better]] = losses[better].to(self.found.loss.dtype)
        self.found.fooled[self.rows[self.hit]] = True


class _Circles:
    """Notices a path that comes back to the very point where it has been, by a 64-bit hash of the pixels' bits."""

    def __init__(self, x: Tensor) -> None:
        words = flat(x).shape[1] * x.element_size() // 4
        weights = Streams(0, range(2), device=x.device).bits((words,))  # (2, D)
        self.weights = (weights[0] << 32 ^ weights[1]) | 1  # (D,) int64, odd
        self.seen = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)  # (B, steps so far)

    def closed(self, x: Tensor) -> Tensor:
        """(B,) bool: this point was on the sample's path before."""
        point = (flat(x).contiguous().view(torch.int32) * self.weights).sum(1)  # (B,), wraps around
        again = (self.seen == point[:, None]).any(1)
        self.seen = torch.cat([self.seen, point[:, None]], 1)
        return again
