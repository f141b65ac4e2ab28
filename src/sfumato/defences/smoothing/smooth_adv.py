"""SmoothAdv: PGD on the smoothed classifier, with exact gradients through the denoiser; what a certificate must survive.

Salman et al. 2019 (arXiv 1906.04584, equation 6): L2 PGD against the mean probability over draws of the noise that are the
same in every step. The objective is ``log (1 - m) - log m`` with ``m = mean_k softmax(f(D(x + sigma e_k)))_y``, which rises
as their ``- log m`` does and keeps its digits where m is almost 1. An image counts as fooled only where fresh draws show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.ascent import ascend
from sfumato.attacks.batching import answer_batch, batch_for
from sfumato.core.errors import InputError
from sfumato.core.slices import slices
from sfumato.defences.compatibility import check_pixels
from sfumato.defences.smoothing.certify import SmoothedClassifier
from sfumato.defences.smoothing.draws import ATTACK, CHECK, Draws, Procedure, SmoothingNoise, run_procedures
from sfumato.defences.smoothing.sequential_test import RunningTest, SequentialTest

SURE = 0.001  # error of "the smoothed classifier predicts another class here"
_NAMING = 16  # draws that say which class that would be


@dataclass(frozen=True)
class SmoothAdvSettings:
    """How hard ``smooth_adv`` tries.

    Args:
        steps: gradients at each radius.
        draws: of noise, over which a gradient is taken.
        check: fresh draws at most, which must show that another class is more frequent than y (with an error of 0.001)
            before an image counts as fooled. So the accuracy under this attack is an upper bound.
        seed: of the noise.
        batch_size: noisy images in a pass; None: the classifier's, on a CPU no more than suit its cache.
    """

    steps: int = 20
    draws: int = 16
    check: int = 1000
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1 or self.check <= _NAMING:
            problem = f"steps {self.steps}, draws {self.draws} and check {self.check}"
            raise InputError(f"{problem}: give 1, 1 and {_NAMING + 1} or more")


class Attacked(NamedTuple):
    """What an attack on the smoothed classifier found."""

    fooled_at: Tensor  # (B,) the smallest radius at which it is fooled, 0 where it is wrong unattacked, inf for none
    x_adv: Tensor  # (B, C, H, W) the image that fools it; where there is none, the best attempt at the largest radius


def smooth_adv(
    smoothed: SmoothedClassifier,
    x: Tensor,
    y: Tensor,
    radii: Sequence[float],
    *,
    ids: Tensor | Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Attacked:
    """Fool the smoothed classifier within growing L2 balls.

    Args:
        smoothed: the target; gradients are taken through its denoiser and classifier.
        x: (B, C, H, W) pixels in [0, 1].
        y: (B,) true labels.
        radii: L2 sizes, gone through from the smallest; each begins where the last one ended.
        ids, progress: as in ``certify``; the noise is another.
        settings: the fields of ``SmoothAdvSettings``.

    Raises:
        InputError: as ``certify``; no radii; a denoiser or classifier through which no gradient flows.
    """
    asked = SmoothAdvSettings(**settings)
    wanted = sorted(set(radii))
    if not wanted or not all(0 < radius < float("inf") for radius in wanted):
        raise InputError("an attack on a smoothed classifier needs radii: give L2 sizes over 0")
    x = check_pixels(x)
    y = y.to(x.device, torch.int64)
    noise = SmoothingNoise(x, asked.seed, ids)
    classifier = smoothed.classifier
    batch = asked.batch_size or answer_batch(classifier, x, None)
    at_once = max(1, (asked.batch_size or batch_for(classifier, x, None)) // asked.draws)

    def fooled(at: Tensor, rows: Tensor) -> Tensor:
        procedures = [_fooled(int(y[row]), asked.check) for row in rows]
        return torch.tensor(
            run_procedures(procedures, lambda i, *draws: smoothed.predict(at, noise, rows[i], *draws), batch)
        )

    fooled_at, best = x.new_full((len(x),), torch.inf), x.clone()
    with classifier.ready():
        for some in slices(len(x), at_once, progress):
            rows = torch.arange(some.start, some.stop)
            robust = rows[~fooled(x, rows)]
            fooled_at[rows] = 0.0
            fooled_at[robust] = torch.inf
            for radius in wanted:
                if not len(robust):
                    break
                which, numbers = robust.repeat_interleave(asked.draws), torch.arange(asked.draws).repeat(len(robust))
                e = noise(which, ATTACK, numbers).view(len(robust), asked.draws, *x.shape[1:])
                best[robust] = _best_of_ascent(smoothed, x[robust], y[robust], best[robust], e, radius, asked.steps)
                hit = fooled(best, robust)
                fooled_at[robust[hit]] = radius
                robust = robust[~hit]
    return Attacked(fooled_at, best)


def soft_loss(smoothed: SmoothedClassifier, x: Tensor, y: Tensor, e: Tensor) -> Tensor:
    """``log (1 - m) - log m`` of the mean probability m of class y over the draws ``e``: (B,), differentiable in ``x``.

    Args:
        x: (B, C, H, W).
        y: (B,).
        e: (B, K, C, H, W) standard normal numbers.
    """
    noisy = (x[:, None] + smoothed.sigma * e).flatten(0, 1)  # (B K, C, H, W)
    scores = smoothed.logits(noisy).log_softmax(1)  # (B K, classes)
    labels = y.repeat_interleave(e.shape[1])[:, None]
    right = scores.gather(1, labels).view(e.shape[:2])  # (B, K)
    wrong = scores.scatter(1, labels, -torch.inf).logsumexp(1).view(e.shape[:2])
    return wrong.logsumexp(1) - right.logsumexp(1)  # the mean's two counts cancel


def _best_of_ascent(
    smoothed: SmoothedClassifier, x: Tensor, y: Tensor, begin: Tensor, e: Tensor, radius: float, steps: int
) -> Tensor:
    """The point of highest loss on the way from ``begin``, for draws ``e`` that stay the same."""
    found, highest = begin.clone(), x.new_full((len(x),), -torch.inf)

    def slope(x_adv: Tensor, index: int) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x_adv.clone().requires_grad_()
            loss = soft_loss(smoothed, leaf, y, e)
            if not loss.requires_grad:
                raise InputError("no gradient flows through the classifier or the denoiser: attack it without one")
            gradient = torch.autograd.grad(loss.sum(), leaf)[0] if index < steps else x_adv
        height = loss.detach().to(highest)
        better = height > highest
        found[better], highest[better] = x_adv[better], height[better]
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    slope(ascend(x, slope, norm="L2", eps=radius, steps=steps, begin=begin), steps)
    return found


def _fooled(label: int, check: int) -> Procedure:
    """Is another class more frequent than ``label``? The first draws name the rival; of the others, those that are the
    label or the rival decide it, by a sequential test."""
    named = np.zeros(0, np.int64)
    while len(named) < _NAMING:
        named = np.append(named, (yield Draws(CHECK, len(named), _NAMING - len(named))))
    others = np.bincount(named[named != label])
    if not len(others):
        return False
    rival = int(others.argmax())
    test, drawn = RunningTest(SequentialTest.of((0.5,), SURE, check)), _NAMING
    while not test.decided and drawn < check:
        labels = yield Draws(CHECK, drawn, check - drawn)
        drawn += len(labels)
        either = labels[(labels == label) | (labels == rival)]
        if len(either):
            test.update(either == rival)
    return bool(test.verdicts[0] == 1)
