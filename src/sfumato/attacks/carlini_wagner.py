"""Carlini and Wagner's L2 attack (2017, arXiv 1608.04644): distance plus a weighted margin, in tanh space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, advantage, closest_adversarial
from sfumato.attacks.norms import check_norm, per_sample
from sfumato.attacks.registry import ATTACKS

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

LARGEST_C = 1e10
INSIDE = 1 - 1e-4  # black and white pixels lie at infinity in tanh space


@ATTACKS.add("carlini-wagner")
def carlini_wagner(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 500,
    search_steps: int = 9,
    step_size: float = 0.2,
    c: float = 1e-3,
    confidence: float = 0.0,
) -> Tensor:
    """The closest adversarial example in L2 (the paper's section VI.A).

    Minimises ``|x' - x|^2 + c max(confidence - margin(x'), 0)`` over ``w`` with ``x' = (tanh w + 1) / 2`` by Adam,
    and searches the smallest working ``c`` of each sample: times 10 until it works, then by bisection.

    Args:
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or the wanted ones when ``targeted``.
        norm: "L2".
        steps: gradient evaluations per sample and value of ``c``.
        search_steps: values of ``c``.
        step_size: Adam's, in tanh space, at first; it falls to a fiftieth along a cosine. (The paper's constant 0.01 is
            too slow for black and white pixels, and too coarse for the smallest perturbations.)
        c: the first value.
        confidence: by how much the wrong logit shall lead.

    ``seed`` and ``ids`` are there because all attacks are called alike: this one draws nothing.

    Returns:
        (B, ...) in [0, 1]: the closest adversarial example found, or ``x`` where there was none.

    Raises:
        InputError: a norm that the attack does not minimise.
    """
    check_norm(norm, ("L2",), "carlini-wagner")

    def search(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        closest, how = Closest(x, norm), Descent(steps, step_size, confidence)
        weight = x.new_full((len(x),), c)
        low, high = torch.zeros_like(weight), torch.full_like(weight, LARGEST_C)
        for _ in range(search_steps):
            worked = _descend(classifier, advantage(y, targeted), closest, weight, how)
            high = torch.where(worked, torch.minimum(high, weight), high)
            low = torch.where(worked, low, torch.maximum(low, weight))
            weight = torch.where(high < LARGEST_C, (low + high) / 2, weight * 10)
        least = max(confidence, 0.0)
        return closest.tightened(lambda points, rows: advantage(y[rows], targeted)(classifier.logits(points)) > least)

    return closest_adversarial(classifier, x, y, targeted, search)


class Descent(NamedTuple):
    """How one descent goes, as in ``carlini_wagner``."""

    steps: int
    step_size: float
    confidence: float


def _descend(
    classifier: Classifier, loss: Callable[[Tensor], Tensor], closest: Closest, weight: Tensor, how: Descent
) -> Tensor:
    """Adam for one value of ``c`` for each sample; offers every point; returns (B,) whether any of the later half was adversarial."""
    x, (steps, step_size, confidence) = closest.x, how
    worked = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    w = torch.atanh((2 * x - 1) * INSIDE)
    adam = torch.optim.Adam([w], step_size)
    for step in range(steps):
        point = (torch.tanh(w) + 1) / 2
        logits, gradient = classifier.gradient(point, lambda logits: (confidence - loss(logits)).clamp(min=0))
        adversarial = loss(logits) > max(confidence, 0.0)
        closest.offer(point, adversarial)
        if step >= steps // 2:  # by then the long first steps cannot have carried a point over by their momentum alone
            worked |= adversarial
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        w.grad = (2 * (point - x) + per_sample(weight, x) * gradient) * 2 * point * (1 - point)
        adam.param_groups[0]["lr"] = step_size * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        adam.step()
    return worked
