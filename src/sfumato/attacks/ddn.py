"""Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): small L2 perturbations in few steps."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, cosine, farthest_norm, unit
from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import per_sample
from sfumato.attacks.registry import minimal


@minimal("ddn", "L2")
def ddn(context: AttackContext, *, steps: int = 300, gamma: float = 0.05, initial_norm: float = 1.0) -> Tensor:
    """The closest adversarial example in L2 (algorithm 1 of the paper, without rounding to 8 bits).

    Each step follows the normalised gradient and then sets the perturbation's length to ``eps``, which shrinks by
    ``gamma`` where the last point was adversarial and grows by ``gamma`` where it was not.

    Args: as every attack, see registry.py, and
        steps: gradient evaluations per sample.
        gamma: by what share the length changes in a step.
        initial_norm: the length to begin with, in [0, 1] pixel units.
    """
    x, classifier, closest = context.x, context.classifier, Closest(context)
    farthest = farthest_norm(x, context.norm)  # (B,)
    eps = farthest.clamp(max=initial_norm)
    delta = torch.zeros_like(x)
    streams = context.streams(0)
    for step in range(steps):
        alpha = 0.01 + 0.99 * cosine(step, steps)
        logits, gradient = classifier.gradient(x + delta, context.margin)
        adversarial = context.margin(logits) > 0
        closest.offer(x + delta, adversarial)
        eps = torch.minimum(eps * torch.where(adversarial, 1 - gamma, 1 + gamma), farthest)
        direction = unit(gradient)
        lost = (direction == 0).flatten(1).all(1)
        if lost.any():  # a gradient of 0 leads nowhere: any direction is better (as the authors' code does)
            direction[lost] = unit(streams.normal(x.shape[1:]).to(x)[lost])
        delta = delta + alpha * direction
        delta = unit(delta) * per_sample(eps, x)
        delta = (x + delta).clamp(0, 1) - x
    closest.asked(x + delta)
    return closest.tightened()
