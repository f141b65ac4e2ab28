"""One run of Auto-PGD, step by step: projected gradient ascent that halves its own step.

    z^(k+1) = P(x^(k) + eta^(k) g^(k))                                         g: the steepest step of length 1
    x^(k+1) = P(x^(k) + alpha (z^(k+1) - x^(k)) + (1 - alpha) (x^(k) - x^(k-1)))

(Croce & Hein 2020, arXiv 2003.01690, algorithm 1.) At the checkpoints w_0, w_1, ..., ever closer together, a sample whose
loss rose in fewer than a share rho of the steps, or whose f_max has stood still at an unchanged step, goes back to x_max
with half the step. For L1 there is no momentum: the steps are sparse, at a sparsity that adapts to x_max (Croce & Hein
2021, arXiv 2103.01208, algorithm 1). Restarts, targets and L1's shrinking balls: ``apgd.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.attacks.context import AttackContext, Goal, Rows
from sfumato.attacks.norms import cube, flat, norm_of, per_sample, project_onto, steepest

ALPHA = 0.75  # weight of the new step against the last change
RHO = 0.75  # the step is halved where fewer than this share of the steps raised the loss
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # p_1, by how much periods shrink, and the shortest: shares of all steps
L1_PERIOD, L1_SHARE, L1_SHRINK, L1_SMALLEST = 0.04, 0.2, 1.5, 10.0  # Croce & Hein 2021, section 3.2


@dataclass
class Point(Rows):
    """Points (n, ...) with their losses (n,) and gradients (n, ...)."""

    x: Tensor
    loss: Tensor
    slope: Tensor

    def go_back(self, best: Point, some: Tensor) -> Point:
        """At ``best`` where ``some`` (n,) is True; a step is still said to raise the loss if it exceeds the last one seen."""
        where = some.reshape(-1, *[1] * (self.x.ndim - 1))
        return Point(torch.where(where, best.x, self.x), self.loss, torch.where(where, best.slope, self.slope))


def auto_pgd(
    context: AttackContext, begin: Tensor, goal: Goal, steps: int, *, stop: bool = True, sparse: bool = False
) -> Tensor:
    """One run from ``begin``.

    Args:
        context: the samples and their balls.
        begin: (B, ...) in ball and box.
        goal: what is raised.
        steps: gradients after the first.
        stop: samples that are fooled leave, with that point; without, all run to the end for their highest loss.
        sparse: for L1, begin at the sparsity of ``begin`` in place of a fifth of the entries.

    Returns:
        (B, ...): the first adversarial point, or x_max.
    """
    found = begin.clone()
    rows = torch.arange(len(begin), device=begin.device)  # (n,) where the samples that have not left belong in it
    corners = Corners.of(context)
    logits, now = _evaluate(context, goal, begin)
    before, best = now.x, Point(begin.clone(), now.loss.clone(), now.slope.clone())  # x^(k-1); x_max and f_max
    rule = Sparsity.at_first(context, begin, best, sparse) if context.norm == "L1" else Halving.at_first(context, best)
    checkpoints = rule.checkpoints(steps)
    for k in range(steps + 1):
        if stop and bool((hit := context.reached(logits)).any()):
            found[rows[hit]] = now.x[hit]
            rows, context, goal, corners = rows[~hit], context[~hit], goal[~hit], corners[~hit]
            before, now, best, rule = before[~hit], now[~hit], best[~hit], rule[~hit]
        if k == steps or len(rows) == 0:
            break
        if k in checkpoints:
            now = now.go_back(best, rule.adapt(context.x, best, checkpoints[k]))
        x_next = _next(context, corners, now, before, rule, 1.0 if k == 0 else ALPHA)
        last, before = now.loss, now.x
        logits, now = _evaluate(context, goal, x_next)
        rule.rises += now.loss > last
        better = now.loss > best.loss
        best.x[better], best.loss[better], best.slope[better] = now.x[better], now.loss[better], now.slope[better]
    found[rows] = best.x
    return found


def _evaluate(context: AttackContext, goal: Goal, x: Tensor) -> tuple[Tensor, Point]:
    logits, losses, slope = context.gradients(x, goal.loss, goal.labels)
    return logits, Point(x, losses, slope)


@dataclass
class Corners(Rows):
    """The lowest and the highest point of box and ball (n, ...), computed once; (n, 0) where the norm is not Linf."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, context: AttackContext) -> Corners:
        x = context.x
        return cls(*(cube(x, context.eps) if context.norm == "Linf" else (x.new_empty(len(x), 0),) * 2))


def _next(
    context: AttackContext, corners: Corners, now: Point, before: Tensor, rule: Halving | Sparsity, alpha: float
) -> Tensor:
    """x^(k+1) by the equations above; for L1 the sparse step alone."""
    x, norm, eps, eta = context.x, context.norm, context.eps, per_sample(rule.eta, now.x)
    if isinstance(rule, Sparsity):
        return project_onto(x, now.x + eta * steepest(now.slope, norm, rule.count(now.x)), norm, eps)
    if norm == "Linf":
        # As below, written into as few new tensors as can be: this is most of what is not the model's.
        z = now.slope.sign().mul_(eta).add_(now.x).clamp_(corners.low, corners.high)
        change = (now.x - before).mul_(1 - alpha).add_(now.x, alpha=1 - alpha)
        return z.mul_(alpha).add_(change).clamp_(corners.low, corners.high)
    z = project_onto(x, now.x + eta * steepest(now.slope, norm), norm, eps)
    change = alpha * (z - now.x) + (1 - alpha) * (now.x - before)
    return project_onto(x, now.x + change, norm, eps)


@dataclass
class Halving(Rows):
    """The step size for Linf and L2: conditions 1 and 2 of Croce & Hein 2020, section 3.2."""

    eta: Tensor  # (n,) the step's length, 2 eps at first
    rises: Tensor  # (n,) steps since the last checkpoint that raised the loss
    halved: Tensor  # (n,) bool: at the last checkpoint
    highest: Tensor  # (n,) f_max at the last checkpoint

    @classmethod
    def at_first(cls, context: AttackContext, best: Point) -> Halving:
        eps = context.eps
        return cls(2.0 * eps, torch.zeros_like(eps), torch.ones_like(eps, dtype=torch.bool), best.loss.clone())

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """The checkpoints w_j below ``steps``, with the steps since the one before: ``p_{j+1} = max(p_j - 0.03, 0.06)``."""
        found, at, period = {}, 0, max(int(FIRST * steps), 1)
        while (at := at + period) < steps:
            found[at] = period
            period = max(period - max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1))
        return found

    def adapt(self, x: Tensor, best: Point, period: int) -> Tensor:
        """Halve the step where one of the conditions holds, (n,) bool: these go back to x_max."""
        too_few = self.rises <= RHO * period
        stuck = ~self.halved & (self.highest >= best.loss)
        self.halved = too_few | stuck
        self.eta = torch.where(self.halved, self.eta / 2, self.eta)
        self.rises, self.highest = torch.zeros_like(self.rises), best.loss.clone()
        return self.halved


@dataclass
class Sparsity(Rows):
    """The step's size and sparsity for L1: Croce & Hein 2021, section 3.2."""

    eps: Tensor  # (n,) the longest step
    eta: Tensor  # (n,) the step's length
    rises: Tensor  # (n,) not used here
    share: Tensor  # (n,) of the entries, in a step
    nonzero: Tensor  # (n,) entries of x_max - x at the last checkpoint

    @classmethod
    def at_first(cls, context: AttackContext, begin: Tensor, best: Point, sparse: bool) -> Sparsity:
        x, eps = context.x, context.eps
        width = flat(x).shape[1]
        nonzero = norm_of(begin - x, "L0") if sparse else torch.full_like(eps, width)
        share = nonzero / width / L1_SHRINK if sparse else torch.full_like(eps, L1_SHARE)
        return cls(eps, eps, torch.zeros_like(eps), share, nonzero)

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """Every 4 of 100 steps."""
        period = max(int(L1_PERIOD * steps), 1)
        return dict.fromkeys(range(period, steps, period), period)

    def count(self, x: Tensor) -> Tensor:
        """(n,) entries in a step; rounded down, so that two can become one."""
        return (self.share * flat(x).shape[1] + 1e-4).floor()

    def adapt(self, x: Tensor, best: Point, period: int) -> Tensor:
        """Where x_max has become sparser, (n,) bool, full steps from there; elsewhere shorter ones."""
        nonzero = norm_of(best.x - x, "L0")
        sparser = nonzero < 0.95 * self.nonzero
        self.share, self.nonzero = nonzero / flat(x).shape[1] / L1_SHRINK, nonzero
        self.eta = torch.where(sparser, self.eps, torch.maximum(self.eta / L1_SHRINK, self.eps / L1_SMALLEST))
        return sparser
