"""Carlini and Wagner's L2 attack (2017, arXiv 1608.04644): distance plus a weighted margin, in tanh space."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, cosine, finite
from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import per_sample
from sfumato.attacks.registry import minimal

LARGEST_C = 1e10
INSIDE = 1 - 1e-4  # black and white pixels lie at infinity in tanh space


@minimal("carlini-wagner", "L2")
def carlini_wagner(
    context: AttackContext,
    *,
    steps: int = 500,
    search_steps: int = 9,
    step_size: float = 0.2,
    c: float = 1e-3,
    confidence: float = 0.0,
) -> Tensor:
    """The closest adversarial example in L2 (the paper's section VI.A).

    Minimises ``|x' - x|^2 + c max(confidence - margin(x'), 0)`` over ``w`` with ``x' = (tanh w + 1) / 2`` by Adam,
    and searches the smallest working ``c`` of each sample: times 10 until it works, then by bisection.

    Args: as every attack, see registry.py, and
        steps: gradient evaluations per sample and value of ``c``.
        search_steps: values of ``c``.
        step_size: Adam's, in tanh space, at first; it falls to a fiftieth along a cosine. (The paper's constant 0.01 is
            too slow for black and white pixels, and too coarse for the smallest perturbations.)
        c: the first value.
        confidence: by how much the wrong logit shall lead.
    """
    x, classifier, closest = context.x, context.classifier, Closest(context)
    least = max(confidence, 0.0)

    def descend(weight: Tensor) -> Tensor:
        """Adam at each sample's ``c`` (B,), every point offered; (B,) whether any of the later half was adversarial."""
        worked = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        w = torch.atanh((2 * x - 1) * INSIDE)
        adam = torch.optim.Adam([w], step_size)
        for step in range(steps):
            point = (torch.tanh(w) + 1) / 2
            logits, gradient = classifier.gradient(point, lambda z: (confidence - context.margin(z)).clamp(min=0))
            adversarial = context.margin(logits) > least
            closest.offer(point, adversarial)
            if step >= steps // 2:  # by then the long first steps cannot have carried a point over by their momentum
                worked |= adversarial
            w.grad = (2 * (point - x) + per_sample(weight, x) * finite(gradient)) * 2 * point * (1 - point)
            adam.param_groups[0]["lr"] = step_size * (0.02 + 0.98 * cosine(step, steps))
            adam.step()
        return worked

    weight = x.new_full((len(x),), c)
    low, high = torch.zeros_like(weight), torch.full_like(weight, LARGEST_C)
    for _ in range(search_steps):
        worked = descend(weight)
        high = torch.where(worked, torch.minimum(high, weight), high)
        low = torch.where(worked, low, torch.maximum(low, weight))
        weight = torch.where(high < LARGEST_C, (low + high) / 2, weight * 10)
    return closest.tightened(least)
