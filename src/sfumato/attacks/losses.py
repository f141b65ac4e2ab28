"""Losses for attacks, each (B, K) logits and (B,) labels to (B,), to be *raised*.

A targeted attack raises the negative of the untargeted loss at the label wanted, or ``targeted_dlr``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Registry[Loss] = Registry("loss")

_TINY = 1e-12  # keeps the ratios defined where all logits are equal


@LOSSES.add("ce")
def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log p_y`` as ``log(1 + exp(log sum_{j != y} e^{z_j} - z_y))``: it keeps its digits where p_y is almost 1."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return F.softplus(others.logsumexp(1) - _at(logits, y))


@LOSSES.add("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y``: positive exactly where the classifier says something else than y (Carlini & Wagner 2017)."""
    return logits.scatter(1, y[:, None], float("-inf")).amax(1) - _at(logits, y)


@LOSSES.add("dlr")
def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over ``z_1st - z_3rd``: does not change with the logits' scale (Croce & Hein 2020a, equation 6).

    With two classes there is no third logit: the margin itself.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1)[0]  # (B, 3)
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``(z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2)`` (Croce & Hein 2020a, equation 7); below 4 classes ``z_t - z_y``."""
    gap = _at(logits, target) - _at(logits, y)
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1)[0]  # (B, 4)
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def likely_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` most likely classes other than ``y``, most likely first, (B, T) with T at most K - 1."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.argsort(dim=1, descending=True)[:, : min(count, logits.shape[1] - 1)]


def toward(loss: Loss, targeted: bool) -> Loss:
    """The loss to raise: ``loss`` itself, or its negative where ``y`` are the labels wanted."""
    return (lambda logits, y: -loss(logits, y)) if targeted else loss


def reached(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """(B,) bool: the classifier says what the attack wants. Logits that are not numbers are no success."""
    highest, predicted = logits.max(1)
    return ((predicted == y) == targeted) & torch.isfinite(highest)


def _at(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of each sample's class y: (B,)."""
    return logits.gather(1, y[:, None]).squeeze(1)
