"""sigma-zero (Cina et al. 2024, arXiv 2402.01879): the fewest pixel values that must change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, advantage, closest_adversarial
from sfumato.attacks.norms import check_norm, norm_of, per_sample
from sfumato.attacks.registry import ATTACKS

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier


@ATTACKS.add("sigma-zero")
def sigma_zero(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L0",
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 300,
    step_size: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
    threshold_rate: float = 0.01,
) -> Tensor:
    """The adversarial example with the fewest changed values, each channel of a pixel counted (algorithm 1).

    Adam descends the margin plus the differentiable count ``mean d^2 / (d^2 + sigma)`` with each sample's gradient
    scaled to a largest entry of 1. After a step, entries below a threshold become 0; the threshold rises while the
    sample is adversarial and falls while it is not.

    Args:
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or the wanted ones when ``targeted``.
        norm: "L0".
        steps: gradient evaluations per sample.
        step_size: Adam's; it falls to a tenth along a cosine.
        sigma: how sharply the count is approximated, in squared pixel units.
        threshold: below which an entry becomes 0, at first.
        threshold_rate: its change in a step, as a share of the step size.

    ``seed`` and ``ids`` are there because all attacks are called alike: this one draws nothing.

    Returns:
        (B, ...) in [0, 1]: the closest adversarial example found, or ``x`` where there was none.

    Raises:
        InputError: a norm that the attack does not minimise.
    """
    check_norm(norm, ("L0",), "sigma-zero")

    def search(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        loss = advantage(y, targeted)
        closest = Closest(x, norm)
        delta = torch.zeros_like(x)
        adam = torch.optim.Adam([delta], step_size)
        tau = x.new_full((len(x),), threshold)
        values = x[0].numel()
        for step in range(steps):
            # As the authors' code counts: the second step is as long as the first.
            eta = step_size * (0.1 + 0.9 * (1 + math.cos(math.pi * max(step - 1, 0) / steps)) / 2)
            logits, gradient = classifier.gradient(x + delta, lambda logits: loss(logits).clamp(max=0))
            adversarial = loss(logits) > 0
            closest.offer(x + delta, adversarial)
            # The gradient of the count, 2 d sigma / (d^2 + sigma)^2 over the number of values.
            gradient = 2 * sigma * delta / (delta**2 + sigma) ** 2 / values - gradient
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            delta.grad = gradient / per_sample(norm_of(gradient, "Linf").clamp(min=1e-12), x)
            adam.param_groups[0]["lr"] = eta
            adam.step()
            delta.copy_((x + delta).clamp(0, 1) - x)
            tau = (tau + threshold_rate * eta * torch.where(adversarial, 1.0, -1.0)).clamp(0, 1)
            delta[delta.abs() < per_sample(tau, x)] = 0.0
        closest.offer(x + delta, loss(classifier.logits(x + delta)) > 0)
        return closest.x_adv

    return closest_adversarial(classifier, x, y, targeted, search)
