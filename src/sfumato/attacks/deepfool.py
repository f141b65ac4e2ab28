"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599): step to the nearest linearised boundary until over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest
from sfumato.attacks.context import AttackContext
from sfumato.attacks.losses import likely_targets
from sfumato.attacks.norms import dual, norm_of, per_sample
from sfumato.attacks.registry import minimal

if TYPE_CHECKING:
    pass


@minimal("deepfool", "L2", "Linf")
def deepfool(context: AttackContext, *, steps: int = 50, overshoot: float = 0.02, candidates: int = 10) -> Tensor:
    """An adversarial example near ``x`` in L2 or Linf (algorithm 2 of the paper), in very few gradient evaluations.

    Each step linearises the classifier and adds the smallest perturbation that reaches the nearest boundary of the
    linearised one: ``|f| / |w|_2^2 w`` in L2, ``|f| / |w|_1 sign(w)`` in Linf. A sample leaves once it is over.

    Args: as every attack, see registry.py, and (with ``targeted`` only the boundary to ``y`` is followed)
        steps: linearisations per sample, at most; each costs one gradient per candidate class.
        overshoot: by what share the perturbation is lengthened.
        candidates: other classes looked at, those with the highest logits at ``x``.
    """

    x, y, classifier, closest = context.x, context.y, context.classifier, Closest(context)
    rows = torch.arange(len(x), device=x.device)
    others = y[:, None] if context.targeted else likely_targets(classifier.logits(x), y, candidates)  # (B, J)
    total = torch.zeros_like(x)

    def offered(rows: Tensor) -> tuple[Tensor, Tensor]:
        """The points of these samples (n, ...), and which are adversarial, (n,)."""
        point = (x[rows] + (1 + overshoot) * total[rows]).clamp(0, 1)
        adversarial = context[rows].margin(classifier.logits(point)) > 0
        closest.offer(point, adversarial, rows)
        return point, adversarial

    for _ in range(steps):
        point, adversarial = offered(rows)
        rows, point = rows[~adversarial], point[~adversarial]
        if not len(rows):
            break
        value, slope = _boundaries(context[rows], point, others[rows])  # (B, J), (B, J, ...)
        length = norm_of(slope.flatten(0, 1), dual(context.norm)).reshape(value.shape)
        length = length.clamp(min=1e-6)
        nearest = (value.abs() / length).argmin(1)
        pick = torch.arange(len(rows), device=x.device), nearest
        # The paper's code adds 1e-4 too: without it, steps towards a curved boundary become ever shorter.
        distance = per_sample(value[pick].abs() / length[pick] + 1e-4, point)
        l2 = context.norm == "L2"
        total[rows] += distance * slope[pick] / per_sample(length[pick], point) if l2 else distance * slope[pick].sign()
    else:
        offered(rows)
    return closest.tightened()


def _boundaries(context: AttackContext, point: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """How far each other class is behind, (B, J), and the gradient of that, (B, J, ...)."""

    def leads(logits: Tensor) -> Tensor:
        if context.targeted:
            return context.margin(logits)[:, None]
        return logits.gather(1, others) - logits.gather(1, context.y[:, None])

    logits, slopes = context.classifier.gradients(point, leads)
    return leads(logits).to(point.dtype), slopes
