"""Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): small L2 perturbations in few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.batching import checked
from sfumato.attacks.closest import Closest, advantage, closest_adversarial, farthest_norm, unit
from sfumato.attacks.norms import check_norm, per_sample
from sfumato.attacks.registry import ATTACKS
from sfumato.core.streams import streams_for

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier


@ATTACKS.add("ddn")
def ddn(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 300,
    gamma: float = 0.05,
    initial_norm: float = 1.0,
) -> Tensor:
    """The closest adversarial example in L2 (algorithm 1 of the paper, without rounding to 8 bits).

    Each step follows the normalised gradient and then sets the perturbation's length to ``eps``, which shrinks by
    ``gamma`` where the last point was adversarial and grows by ``gamma`` where it was not.

    Args:
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or the wanted ones when ``targeted``.
        norm: "L2".
        steps: gradient evaluations per sample.
        gamma: by what share the length changes in a step.
        seed: of the directions taken where the gradient is 0; each sample has its own stream by its number in ``ids``
            (default 0 ... B - 1).
        initial_norm: the length to begin with, in [0, 1] pixel units.

    Returns:
        (B, ...) in [0, 1]: the closest adversarial example found, or ``x`` where there was none.

    Raises:
        InputError: a norm that the attack does not minimise.
    """
    check_norm(norm, ("L2",), "ddn")
    _, _, numbers = checked(x, y, ids)

    def search(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        loss = advantage(y, targeted)
        closest = Closest(x, norm)
        farthest = farthest_norm(x, norm)  # (B,)
        eps = farthest.clamp(max=initial_norm)
        delta = torch.zeros_like(x)
        streams = streams_for(x, seed, numbers[rows])
        for step in range(steps):
            alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
            logits, gradient = classifier.gradient(x + delta, loss)
            adversarial = loss(logits) > 0
            closest.offer(x + delta, adversarial)
            eps = torch.minimum(eps * torch.where(adversarial, 1 - gamma, 1 + gamma), farthest)
            direction = unit(gradient)
            lost = (direction == 0).flatten(1).all(1)
            if lost.any():  # a gradient of 0 leads nowhere: any direction is better (as the authors' code does)
                direction[lost] = unit(streams.normal(x.shape[1:]).to(x)[lost])
            delta = delta + alpha * direction
            delta = unit(delta) * per_sample(eps, x)
            delta = (x + delta).clamp(0, 1) - x
        closest.offer(x + delta, loss(classifier.logits(x + delta)) > 0)
        return closest.tightened(lambda points, rows: advantage(y[rows], targeted)(classifier.logits(points)) > 0)

    return closest_adversarial(classifier, x, y, targeted, search)
