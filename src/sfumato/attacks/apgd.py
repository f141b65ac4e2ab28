"""Auto-PGD as an attack (Croce & Hein 2020, arXiv 2003.01690): restarts, targets, and for L1 balls that shrink.

What a run does step by step is in ``auto_pgd.py``. A sample leaves as soon as it is fooled: the verdict cannot change any
more, so that every run goes over the samples that are not fooled yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.attacks.auto_pgd import auto_pgd
from sfumato.attacks.context import AttackContext, Goal
from sfumato.attacks.losses import LOSSES, likely_targets, targeted_dlr, toward
from sfumato.attacks.norms import project_onto
from sfumato.attacks.registry import within_eps
from sfumato.core.errors import InputError

AimedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (B, K), source (B,), target class (B,) -> (B,)
Plan = Callable[[Tensor], tuple[Tensor, list[tuple[Tensor, int]]]]
"""Clean logits to the source class (B,), and for each run its target class (B,) and the salt of its random start."""

L1_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius over eps, share of the steps


@within_eps("apgd")
def apgd(context: AttackContext, *, steps: int = 100, restarts: int = 1, loss: str = "ce") -> Tensor:
    """Auto-PGD on the cross-entropy, the margin or the difference of logits ratio (DLR).

    For L1 it first searches balls of 3 and 2 eps, and works its way in.

    Args: as every attack, see registry.py, and
        steps: gradients in each run, after the one at the start.
        restarts: runs, each on the samples that are not fooled yet.
        loss: "ce", "margin" or "dlr" (below 3 classes the margin).

    Returns:
        (B, ...) in the box and the ball; where nothing was found, the attempt of largest margin. Samples that are
        fooled from the start come back as they are.
    """
    _check(steps, restarts)
    raised = toward(LOSSES.find(loss), context.targeted)
    runs = [(context.y, 1000 + restart) for restart in range(restarts)]
    return _attack(context, lambda _: (context.y, runs), lambda logits, y, _: raised(logits, y), steps)


@within_eps("apgd-t")
def apgd_targeted(context: AttackContext, *, steps: int = 100, restarts: int = 1, targets: int = 9) -> Tensor:
    """Auto-PGD on the targeted DLR loss, toward one class after the other, the most likely first.

    Args: as every attack, see registry.py (``targeted``: aim at ``y`` only, away from what the classifier says), and
        steps: as in ``apgd``.
        restarts: runs toward each class.
        targets: how many classes to aim at; never more than there are wrong ones. Any wrong class is a success.

    Returns:
        As ``apgd``. Below 4 classes the loss is the difference of the two logits.
    """
    _check(steps, restarts)
    if targets < 1:
        raise InputError(f"apgd-t with {targets} targets does nothing: give 1 or more")

    def plan(logits: Tensor) -> tuple[Tensor, list[tuple[Tensor, int]]]:
        if context.targeted:
            return logits.argmax(1), [(context.y, 2000 + restart) for restart in range(restarts)]
        aims = enumerate(likely_targets(logits, context.y, targets).unbind(1))
        return context.y, [(aim, 2000 + 100 * i + r) for i, aim in aims for r in range(restarts)]

    return _attack(context, plan, targeted_dlr, steps)


def _check(steps: int, restarts: int) -> None:
    if steps < 1 or restarts < 1:
        raise InputError(f"apgd with {steps} steps and {restarts} restarts does nothing: give 1 or more of each")


def _attack(context: AttackContext, plan: Plan, loss: AimedLoss, steps: int) -> Tensor:
    """Every run of the plan, on the samples that are not fooled yet."""
    result = context.x.clone()
    if len(context) == 0:
        return result
    with context.classifier.ready():
        clean = context.answers(context.x)
        source, runs = plan(clean)
        rows = (~context.reached(clean)).nonzero().flatten()
        highest = context.x.new_full((len(context),), -torch.inf)
        for target, salt in runs:
            if len(rows) == 0:
                break
            some = context[rows]
            begin = some.random_start(salt, L1_STAGES[0][0] if context.norm == "L1" else 1.0)
            found = _staged(some, begin, Goal(loss, source[rows], target[rows]), steps)
            logits = some.answers(found)
            fooled, height = some.reached(logits), some.margin(logits).to(highest.dtype)
            better = fooled | (height > highest[rows])
            result[rows[better]], highest[rows[better]] = found[better], height[better]
            rows = rows[~fooled]
    return result


def _staged(context: AttackContext, begin: Tensor, goal: Goal, steps: int) -> Tensor:
    """One run; for L1 three, in shrinking balls, of which only the last one counts."""
    if context.norm != "L1":
        return auto_pgd(context, begin, goal, steps)
    shares = [math.ceil(share * steps) for _, share in L1_STAGES[:-1]]
    for index, ((wider, _), part) in enumerate(zip(L1_STAGES, [*shares, steps - sum(shares)], strict=True)):
        ball = replace(context, eps=wider * context.eps)
        begin = begin if index == 0 else project_onto(ball.x, begin, "L1", ball.eps)
        begin = auto_pgd(ball, begin, goal, max(part, 1), stop=wider == 1, sparse=index > 0)
    return begin
