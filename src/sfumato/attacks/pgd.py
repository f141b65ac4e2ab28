"""Projected gradient descent: many small steps of steepest ascent, each projected back into ball and box.

BIM without a random start (Kurakin et al. 2017, arXiv 1607.02533), PGD with one (Madry et al. 2018, arXiv 1706.06083),
MI-FGSM with momentum (Dong et al. 2018, arXiv 1710.06081, algorithm 1). A sample leaves as soon as it is fooled, or when
its path has come back to a point where it has been: at a constant step without momentum all would be the same again ("Stop
Walking in Circles!", arXiv 2503.19347).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.batching import answers, checked, gradients, random_start
from sfumato.attacks.losses import LOSSES, Loss, reached, toward
from sfumato.attacks.norms import check_norm, flat, into, norm_of, per_sample, steepest
from sfumato.attacks.registry import ATTACKS
from sfumato.attacks.verify import fooled
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams, streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # direction, x_adv, radius (B,), step number -> change of x_adv

FIRST_STEP, LAST_STEP = 2.0, 0.02  # times eps, where no step is given
_L1_SHARE = 0.1  # of the entries take part in the first L1 step
_L1_REACH = 0.5  # how far one pixel can be expected to move inside the box


class Climbed(NamedTuple):
    """How far a climb came: the first adversarial point of each sample, or else the one of highest loss."""

    x_adv: Tensor  # (B, ...)
    loss: Tensor  # (B,)
    fell: Tensor  # (B,) bool


@ATTACKS.add("pgd")
def pgd(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 40,
    step: float | None = None,
    restarts: int = 1,
    start: str = "random",
    momentum: float = 0.0,
    loss: str = "ce",
    batch_size: int | None = None,
) -> Tensor:
    """Projected gradient descent on ball and box.

    Args:
        classifier: to attack.
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or with ``targeted`` the labels wanted.
        norm: Linf, L2 or L1.
        eps: radius, a float or (B,).
        targeted: lower the loss at ``y`` in place of raising it.
        seed, ids: of the random start; sample i's depends on seed and ids[i] (default i) alone.
        steps: gradients in each run; one more forward pass looks at the last point.
        step: length of every step as a share of ``eps``. Default: falling from 2 to 0.02 geometrically, which crosses
            the ball first and settles last; on robust classifiers it is both stronger and sooner done than a constant.
        restarts: runs, each on the samples that still stand.
        start: "random", or "clean" to begin at ``x`` (then restarts make no difference).
        momentum: share of the last direction that is kept, 0 (PGD) to 1 (MI-FGSM).
        loss: "ce", "margin" or "dlr".
        batch_size: samples in a pass; the classifier's own by default.

    Returns:
        (B, ...) in the box and the ball; where nothing was found, the point of highest loss.
    """
    check_norm(norm, ("Linf", "L2", "L1"), "pgd")
    if steps < 1 or restarts < 1:
        raise InputError(f"pgd with {steps} steps and {restarts} restarts does nothing: give 1 or more of each")
    if start not in ("random", "clean"):
        raise InputError(f"unknown start {start!r} for pgd: choose 'random' or 'clean'")
    x, y, ids = checked(x, y, ids, eps)
    radius = per_sample(eps, x).reshape(-1)
    rise = toward(LOSSES.find(loss), targeted)
    result, highest = x.clone(), x.new_full((len(x),), -torch.inf)
    rows = torch.arange(len(x), device=x.device)
    with classifier.ready():
        for restart in range(restarts):
            if len(rows) == 0:
                break
            begin = x[rows]
            if start == "random":
                begin = random_start(begin, norm, radius[rows], _streams(x, seed, ids, restart).keep(rows))
            found = climb(
                classifier, x[rows], y[rows], begin, norm, radius[rows], steps, steps_of(norm, step, steps), rise,
                targeted, batch_size, momentum, repeats=step is not None and not momentum)  # fmt: skip
            fell = found.fell.clone()
            fell[found.fell] = fooled(classifier, found.x_adv[found.fell], y[rows[found.fell]], targeted)
            better = fell | (found.loss > highest[rows])
            result[rows[better]] = found.x_adv[better]
            highest[rows[better]] = found.loss[better]
            rows = rows[~fell]
    return result


def _streams(x: Tensor, seed: int, ids: Tensor, restart: int) -> Streams:
    return streams_for(x, seed, ids, salt=restart)


def steps_of(norm: str, share: float | None, steps: int) -> Step:
    """Steepest steps of length ``share * eps``, or of falling length.

    For L1 the number of entries that take part falls from a tenth of all to what a step needs inside the box, in the
    first half of the run: first many move, then the few that count most collect the budget.
    """

    def step(direction: Tensor, x_adv: Tensor, radius: Tensor, index: int) -> Tensor:
        done = index / max(1, steps - 1)
        length = radius * (FIRST_STEP * (LAST_STEP / FIRST_STEP) ** done if share is None else share)
        if norm != "L1":
            return per_sample(length, x_adv) * steepest(direction, norm)
        blocked = ((x_adv >= 1) & (direction > 0)) | ((x_adv <= 0) & (direction < 0))
        needed = (length / _L1_REACH).ceil().clamp_min(1)
        most = (_L1_SHARE * flat(x_adv).shape[1] / needed).clamp_min(1)
        count = needed * most ** max(0.0, 1 - 2 * done)
        return per_sample(length, x_adv) * steepest(direction.masked_fill(blocked, 0), norm, count)

    return step


def climb(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    norm: str,
    radius: Tensor,
    steps: int,
    step: Step,
    loss: Loss,
    targeted: bool,
    batch_size: int | None = None,
    momentum: float = 0.0,
    repeats: bool = False,
) -> Climbed:
    """One run from ``begin``; the samples that are fooled leave at once.

    With ``repeats`` a step depends on the point alone, and the samples that come back to a point leave too.
    """
    result, highest = begin.clone(), x.new_full((len(x),), -torch.inf)
    fell = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    x_adv, velocity = begin, torch.zeros_like(x)
    circles = _Circles(x) if repeats else None
    for index in range(steps + 1):
        if len(rows) == 0:
            break
        if index < steps:
            logits, losses, slope = gradients(classifier, x_adv, loss, (y,), batch_size)
        else:  # only a look at where the last step led
            logits, slope = answers(classifier, x_adv, batch_size), velocity
            losses = loss(logits, y)
        hit = reached(logits, y, targeted)
        better = hit | (losses > highest[rows])
        result[rows[better]] = x_adv[better]
        highest[rows[better]] = losses[better].to(highest.dtype)
        fell[rows[hit]] = True
        stay = ~hit
        if circles is not None:
            stay &= ~circles.closed(x_adv)
        if not bool(stay.all()):
            rows, x, y, x_adv, slope = rows[stay], x[stay], y[stay], x_adv[stay], slope[stay]
            velocity, radius = velocity[stay], radius[stay]
            if circles is not None:
                circles.keep(stay)
        if index < steps and len(rows):
            if momentum:
                mean = norm_of(slope, "L1").clamp_min(torch.finfo(x.dtype).tiny)
                velocity = momentum * velocity + slope / per_sample(mean, x)
                slope = velocity
            x_adv = into(x, x_adv + step(slope, x_adv, radius, index), norm, radius)
    return Climbed(result, highest, fell)


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

    def keep(self, rows: Tensor) -> None:
        self.seen = self.seen[rows]
