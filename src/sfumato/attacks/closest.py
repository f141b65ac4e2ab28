"""What the minimal-norm attacks share: which samples need work, the closest adversarial example so far, the last check."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import norm_of, per_sample, project, steepest
from sfumato.attacks.verify import fooled
from sfumato.core.errors import InputError

# Convolutions round differently in batches of different sizes: an example found on the very boundary is pushed over it.
STRETCHES = (1.0, 1.0 + 1e-5, 1.0 + 1e-4, 1.0 + 1e-3)


class Closest:
    """The closest adversarial example that was offered for each sample; ``x`` itself where there was none.

    Attributes:
        x_adv: (B, ...) in [0, 1].
        size: (B,) its distance; infinite where nothing was found.
    """

    def __init__(self, context: AttackContext) -> None:
        self.context, self.x, self.norm = context, context.x, context.norm
        self.x_adv = self.x.clone()
        self.size = self.x.new_full((len(self.x),), torch.inf)

    def tightened(self, least: float = 0.0) -> Tensor:
        """(B, ...) the closest examples, pulled back by bisection until their margin is just above ``least``."""
        rows = torch.nonzero((self.size > 0) & (self.size < torch.inf)).flatten()
        some, classifier = self.context[rows], self.context.classifier
        ends = pull_back(some, self.x_adv[rows], lambda points: some.margin(classifier.logits(points)) > least)
        self.offer(ends, torch.ones_like(rows, dtype=torch.bool), rows)
        return self.x_adv

    def asked(self, points: Tensor) -> Tensor:
        """The closest examples, after these points (B, ...) of all samples too."""
        self.offer(points, self.context.margin(self.context.classifier.logits(points)) > 0)
        return self.x_adv

    def offer(self, candidates: Tensor, adversarial: Tensor, rows: Tensor | None = None) -> None:
        """Keep what is adversarial, (n,) bool, and closer than before: points (n, ...) of all samples or of ``rows`` (n,)."""
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows
        size = norm_of(candidates - self.x[rows], self.norm)
        better = adversarial & (size < self.size[rows])
        self.x_adv[rows[better]] = candidates[better]
        self.size[rows[better]] = size[better]


def closest_adversarial(search: Callable[..., Tensor], context: AttackContext, settings: dict[str, Any]) -> Tensor:
    """``search(context, **settings)`` of the samples that do not fool the classifier already, checked afresh.

    ``search`` sees at most ``classifier.batch_size`` samples at once.

    Returns:
        (B, ...) in [0, 1]: ``x`` itself where it fools the classifier already, or where nothing holds in a fresh pass.
    """
    classifier, x, y, targeted = context.classifier, context.x, context.y, context.targeted
    x_adv = x.clone()
    by_sample = {name: value for name, value in settings.items() if isinstance(value, Tensor)}
    for name, value in by_sample.items():
        if value.shape != x.shape:
            raise InputError(f"{name} have shape {tuple(value.shape)}: give one for each sample, {tuple(x.shape)}")
    if not len(x):
        return x_adv
    with classifier.ready():
        todo = torch.nonzero(~fooled(classifier, x, y, targeted)).flatten()
        for rows in todo.split(classifier.batch_size) if len(todo) else ():
            own = settings | {name: value.to(x)[rows] for name, value in by_sample.items()}
            found = search(context[rows], **own)
            for stretch in STRETCHES:
                candidates = found if stretch == 1 else (x[rows] + stretch * (found - x[rows])).clamp(0, 1)
                holds = fooled(classifier, candidates, y[rows], targeted)
                x_adv[rows[holds]] = candidates[holds]
                undecided = ~holds & (found != x[rows]).flatten(1).any(1)
                rows, found = rows[undecided], found[undecided]
                if not len(rows):
                    break
    return x_adv


def pull_back(
    context: AttackContext, points: Tensor, adversarial: Callable[[Tensor], Tensor], rounds: int = 10
) -> Tensor:
    """The adversarial end of a bisection from adversarial ``points`` towards ``x``, ``rounds`` forward passes each.

    In L2 it runs along the segment, in Linf it shrinks the cube that the perturbation is clipped to, in L1 it takes the
    same amount off every entry.
    """
    x, norm = context.x, context.norm
    if not len(x):
        return points
    start = points - x
    size = norm_of(start, "L2" if norm == "L2" else "Linf")
    low, high = torch.zeros_like(size), torch.ones_like(size)
    best = points
    for _ in range(rounds):
        middle = (low + high) / 2
        if norm == "L2":
            delta = per_sample(middle, x) * start
        elif norm == "Linf":
            delta = project(start, "Linf", middle * size)
        else:
            delta = start.sign() * (start.abs() - per_sample((1 - middle) * size, x)).clamp(min=0)
        trial = (x + delta).clamp(0, 1)
        hit = adversarial(trial)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        best = torch.where(per_sample(hit, x) > 0, trial, best)
    return best


def finite(gradient: Tensor) -> Tensor:
    """The gradient with 0 for entries that are not finite."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient at Euclidean length 1; gradients of 0 stay 0, entries that are not finite become 0."""
    return steepest(finite(gradient), "L2")


def cosine(step: int, steps: int) -> float:
    """From 1 towards 0 along half a wave."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def farthest_norm(x: Tensor, norm: str) -> Tensor:
    """(B,) the norm of the largest perturbation that stays in [0, 1]."""
    return norm_of(torch.maximum(x, 1 - x), norm)
