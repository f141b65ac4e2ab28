"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599): step to the nearest linearised boundary until over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest, advantage, closest_adversarial
from sfumato.attacks.norms import check_norm, norm_of, per_sample
from sfumato.attacks.registry import ATTACKS

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier


@ATTACKS.add("deepfool")
def deepfool(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
) -> Tensor:
    """An adversarial example near ``x`` in L2 or Linf (algorithm 2 of the paper), in very few gradient evaluations.

    Each step linearises the classifier and adds the smallest perturbation that reaches the nearest boundary of the
    linearised one: ``|f| / |w|_2^2 w`` in L2, ``|f| / |w|_1 sign(w)`` in Linf. A sample leaves once it is over.

    Args:
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or the wanted ones when ``targeted`` (then the one boundary to that label is followed).
        norm: "L2" or "Linf".
        steps: linearisations per sample, at most; each costs one gradient per candidate class.
        overshoot: by what share the perturbation is lengthened.
        candidates: other classes looked at, those with the highest logits at ``x``.

    ``seed`` and ``ids`` are there because all attacks are called alike: this one draws nothing.

    Returns:
        (B, ...) in [0, 1]: the adversarial example, or ``x`` where there was none.

    Raises:
        InputError: a norm that the attack does not minimise.
    """
    check_norm(norm, ("L2", "Linf"), "deepfool")

    def search(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        closest = Closest(x, norm)
        rows = torch.arange(len(x), device=x.device)
        others = y[:, None] if targeted else _candidates(classifier.logits(x), y, candidates)  # (B, J)
        total = torch.zeros_like(x)
        for _ in range(steps):
            point = (x[rows] + (1 + overshoot) * total[rows]).clamp(0, 1)
            adversarial = advantage(y[rows], targeted)(classifier.logits(point)) > 0
            closest.offer(point, adversarial, rows)
            rows, point = rows[~adversarial], point[~adversarial]
            if not len(rows):
                break
            value, slope = _boundaries(classifier, point, y[rows], others[rows], targeted)  # (B, J), (B, J, ...)
            length = norm_of(slope.flatten(0, 1), "L2" if norm == "L2" else "L1").reshape(value.shape)
            length = length.clamp(min=1e-6)
            nearest = (value.abs() / length).argmin(1)
            pick = torch.arange(len(rows), device=x.device), nearest
            # The paper's code adds 1e-4 too: without it, steps towards a curved boundary become ever shorter.
            distance = per_sample(value[pick].abs() / length[pick] + 1e-4, point)
            if norm == "L2":
                total[rows] += distance * slope[pick] / per_sample(length[pick], point)
            else:
                total[rows] += distance * slope[pick].sign()
        else:
            point = (x[rows] + (1 + overshoot) * total[rows]).clamp(0, 1)
            closest.offer(point, advantage(y[rows], targeted)(classifier.logits(point)) > 0, rows)
        return closest.tightened(lambda points, rows: advantage(y[rows], targeted)(classifier.logits(points)) > 0)

    return closest_adversarial(classifier, x, y, targeted, search)


def _candidates(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """(B, J) the ``count`` classes with the highest logits other than ``y``."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _boundaries(
    classifier: Classifier, point: Tensor, y: Tensor, others: Tensor, targeted: bool
) -> tuple[Tensor, Tensor]:
    """How far each other class is behind, (B, J), and the gradient of that, (B, J, ...)."""

    def leads(logits: Tensor) -> Tensor:
        if targeted:
            return advantage(y, True)(logits)[:, None]
        return logits.gather(1, others) - logits.gather(1, y[:, None])

    logits, slopes = classifier.gradients(point, leads)
    return leads(logits).to(point.dtype), slopes
