"""sigma-zero (Cina et al. 2024, arXiv 2402.01879): the fewest pixel values that must change."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, cosine, finite
from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import norm_of, per_sample
from sfumato.attacks.registry import minimal


@minimal("sigma-zero", "L0")
def sigma_zero(
    context: AttackContext,
    *,
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

    Args: as every attack, see registry.py, and
        steps: gradient evaluations per sample.
        step_size: Adam's; it falls to a tenth along a cosine.
        sigma: how sharply the count is approximated, in squared pixel units.
        threshold: below which an entry becomes 0, at first.
        threshold_rate: its change in a step, as a share of the step size.
    """

    x, classifier, closest = context.x, context.classifier, Closest(context)
    delta = torch.zeros_like(x)
    adam = torch.optim.Adam([delta], step_size)
    tau = x.new_full((len(x),), threshold)
    values = x[0].numel()
    for step in range(steps):
        # As the authors' code counts: the second step is as long as the first.
        eta = step_size * (0.1 + 0.9 * cosine(max(step - 1, 0), steps))
        logits, gradient = classifier.gradient(x + delta, lambda logits: context.margin(logits).clamp(max=0))
        adversarial = context.margin(logits) > 0
        closest.offer(x + delta, adversarial)
        # The gradient of the count, 2 d sigma / (d^2 + sigma)^2 over the number of values.
        gradient = finite(2 * sigma * delta / (delta**2 + sigma) ** 2 / values - gradient)
        delta.grad = gradient / per_sample(norm_of(gradient, "Linf").clamp(min=1e-12), x)
        adam.param_groups[0]["lr"] = eta
        adam.step()
        delta.copy_((x + delta).clamp(0, 1) - x)
        tau = (tau + threshold_rate * eta * torch.where(adversarial, 1.0, -1.0)).clamp(0, 1)
        delta[delta.abs() < per_sample(tau, x)] = 0.0
    return closest.asked(x + delta)
