"""What the minimal-norm attacks share: which samples need work, the closest adversarial example so far, the last check."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.batching import checked
from sfumato.attacks.losses import margin
from sfumato.attacks.norms import norm_of, per_sample, project, steepest
from sfumato.attacks.verify import fooled

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

Search = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, ...), y (B,), rows of the whole batch (B,) -> candidates
# Convolutions round differently in batches of different sizes: an example found on the very boundary is pushed over it.
STRETCHES = (1.0, 1.0 + 1e-5, 1.0 + 1e-4, 1.0 + 1e-3)


def advantage(y: Tensor, targeted: bool) -> Callable[[Tensor], Tensor]:
    """The loss that these attacks raise, logits (B, K) -> (B,): above 0 only where the sample fools the classifier.

    ``max_{j != y} z_j - z_y``, or ``z_y - max_{j != y} z_j`` when ``y`` is what the classifier shall say.
    """
    return lambda logits: -margin(logits, y) if targeted else margin(logits, y)


class Closest:
    """The closest adversarial example that was offered for each sample; ``x`` itself where there was none.

    Attributes:
        x_adv: (B, ...) in [0, 1].
        size: (B,) its distance; infinite where nothing was found.
    """

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self.norm = x, norm
        self.x_adv = x.clone()
        self.size = x.new_full((len(x),), torch.inf)

    def tightened(self, adversarial: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(B, ...) the closest examples, pulled back towards ``x`` by bisection until they just hold.

        Args:
            adversarial: points (B, ...) and their rows (B,) -> (B,) whether they fool the classifier.
        """
        rows = torch.nonzero((self.size > 0) & (self.size < torch.inf)).flatten()
        ends = pull_back(self.x[rows], self.x_adv[rows], self.norm, lambda points: adversarial(points, rows))
        self.offer(ends, torch.ones_like(rows, dtype=torch.bool), rows)
        return self.x_adv

    def offer(self, candidates: Tensor, adversarial: Tensor, rows: Tensor | None = None) -> None:
        """Keeps what is adversarial and closer than before.

        Args:
            candidates: (B, ...) points in [0, 1], one for each sample or for each of ``rows``.
            adversarial: (B,) whether they fool the classifier.
            rows: (B,) the numbers of their samples.
        """
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows
        size = norm_of(candidates - self.x[rows], self.norm)
        better = adversarial & (size < self.size[rows])
        self.x_adv[rows[better]] = candidates[better]
        self.size[rows[better]] = size[better]


def closest_adversarial(classifier: Classifier, x: Tensor, y: Tensor, targeted: bool, search: Search) -> Tensor:
    """Runs ``search`` on the samples that do not fool the classifier already, and checks afresh what it found.

    ``search`` sees at most ``classifier.batch_size`` samples at once.

    Returns:
        (B, ...) in [0, 1]: ``x`` itself where it fools the classifier already, or where nothing holds in a fresh pass.
    """
    x, y, _ = checked(x, y, None)
    x_adv = x.clone()
    if not len(x):
        return x_adv
    with classifier.ready():
        todo = torch.nonzero(~fooled(classifier, x, y, targeted)).flatten()
        for rows in todo.split(classifier.batch_size) if len(todo) else ():
            found = search(x[rows], y[rows], rows)
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
    x: Tensor, points: Tensor, norm: str, adversarial: Callable[[Tensor], Tensor], rounds: int = 10
) -> Tensor:
    """The adversarial end of a bisection from adversarial ``points`` towards ``x``, ``rounds`` forward passes each.

    In L2 it runs along the segment, in Linf it shrinks the cube that the perturbation is clipped to, in L1 it takes the
    same amount off every entry.
    """
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


def unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient at Euclidean length 1; gradients of 0 stay 0, entries that are not finite become 0."""
    return steepest(torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0), "L2")


def farthest_norm(x: Tensor, norm: str) -> Tensor:
    """(B,) the norm of the largest perturbation that stays in [0, 1]."""
    return norm_of(torch.maximum(x, 1 - x), norm)
