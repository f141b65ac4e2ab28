"""Szegedy et al. 2014 (arXiv 1312.6199): box-constrained L-BFGS, the attack that began the field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.attacks.closest import Closest
from sfumato.attacks.context import AttackContext
from sfumato.attacks.norms import per_sample
from sfumato.attacks.registry import minimal

# Points (B, d), rows (B,) -> values (B,), gradients (B, d).
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@minimal("lbfgs", "L2")
def lbfgs(context: AttackContext, *, steps: int = 50, search_steps: int = 10, c: float = 1.0) -> Tensor:
    """The closest adversarial example in L2 by box-constrained L-BFGS (section 4.1 of the paper).

    Minimises ``c |r|^2 + loss(x + r)`` over ``x + r`` in [0, 1] and searches, for each sample, the largest ``c``
    whose minimiser still fools the classifier: by factors of 10, then by bisection of its logarithm. The loss is the
    cross-entropy of the wanted label when ``targeted``; the paper has no other case, and the natural one,
    ``-log P(any label but y)``, is used when not.

    Args: as every attack, see registry.py, and
        steps: gradient evaluations per sample and value of ``c``, at most.
        search_steps: values of ``c``.
        c: the first value, in nats per squared pixel unit.
    """

    x, targeted, classifier, closest = context.x, context.targeted, context.classifier, Closest(context)
    weight = x.new_full((len(x),), c)
    works, fails = torch.zeros_like(weight), torch.full_like(weight, torch.inf)  # c that did, c that did not
    for _ in range(search_steps):

        def objective(flat_points: Tensor, rows: Tensor, weight: Tensor = weight) -> tuple[Tensor, Tensor]:
            points, labels = flat_points.reshape(-1, *x.shape[1:]), context.y[rows]
            logits, gradient = classifier.gradient(points, lambda z: negative_log_fooled(z, labels, targeted))
            closest.offer(points, context[rows].margin(logits) > 0, rows)
            difference = points - x[rows]
            values = negative_log_fooled(logits, labels, targeted).to(x.dtype)
            values = values + weight[rows] * difference.flatten(1).square().sum(1)
            return values, (gradient + 2 * per_sample(weight[rows], points) * difference).flatten(1)

        # Points on the way count when they are close, but only where the minimiser itself fools is c small enough.
        end = minimise_in_box(objective, x.flatten(1), steps=steps).reshape(x.shape)
        worked = context.margin(classifier.logits(end)) > 0
        works = torch.where(worked, torch.maximum(works, weight), works)
        fails = torch.where(worked, fails, torch.minimum(fails, weight))
        between = (works * fails).sqrt()
        weight = torch.where(fails == torch.inf, works * 10, torch.where(works == 0, fails / 10, between))
    return closest.tightened()


def negative_log_fooled(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """(B,) ``-log P(y)`` when ``targeted``, else ``-log (1 - P(y))`` without cancellation."""
    if targeted:
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)


def minimise_in_box(objective: Objective, start: Tensor, *, steps: int, memory: int = 10) -> Tensor:
    """Projected L-BFGS on [0, 1]^d: many problems side by side, each with its own history and step length.

    In each step the coordinates that sit at a bound and would leave the box are held; the two-loop recursion
    (Nocedal and Wright 2006, algorithm 7.4) gives the direction in the others; the trial point is clipped to the box
    and accepted by Armijo's rule, else the step is halved. One evaluation a step, for every problem that goes on.

    Args:
        objective: values and gradients at points, for the problems numbered by ``rows``.
        start: (B, d) in [0, 1].
        steps: evaluations per problem, at most.
        memory: pairs of steps and gradient changes kept.

    Returns:
        (B, d) the points reached.
    """
    x, rows = start.clone(), torch.arange(len(start), device=start.device)
    value, gradient = objective(x, rows)
    changes: list[tuple[Tensor, Tensor]] = []  # the newest last; a problem without a new pair has zeros there
    direction, length = _direction(x, gradient, changes), torch.ones_like(value)
    for _ in range(steps - 1):
        going = (direction != 0).any(1) & (length > 1e-8) & torch.isfinite(value)
        if not going.any():
            break
        rows = torch.nonzero(going).flatten()
        trial = (x[rows] + length[rows, None] * direction[rows]).clamp(0, 1)
        trial_value, trial_gradient = objective(trial, rows)
        step = trial - x[rows]
        accepted = trial_value <= value[rows] + 1e-4 * (gradient[rows] * step).sum(1)
        length[rows] = torch.where(accepted, 1.0, length[rows] / 2)
        rows, step, trial = rows[accepted], step[accepted], trial[accepted]
        if not len(rows):
            continue
        steps_taken, bends = torch.zeros_like(x), torch.zeros_like(x)
        steps_taken[rows], bends[rows] = step, trial_gradient[accepted] - gradient[rows]
        changes = [*changes, (steps_taken, bends)][-memory:]
        x[rows], value[rows], gradient[rows] = trial, trial_value[accepted], trial_gradient[accepted]
        direction[rows] = _direction(x, gradient, changes)[rows]
    return x


def _direction(x: Tensor, gradient: Tensor, changes: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(B, d) the quasi-Newton descent direction among the coordinates that may move; 0 at a stationary point."""
    free = ~(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)))
    slope = torch.where(free, gradient, 0.0)
    direction = -slope
    scale = 1 / slope.norm(dim=1).clamp(min=1.0)  # (B,) no pair yet: a step of length 1 at most
    used: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for step, bend in reversed(changes):
        step, bend = torch.where(free, step, 0.0), torch.where(free, bend, 0.0)
        curvature = (step * bend).sum(1)
        # Pairs of no or negative curvature would make the direction point uphill.
        inverse = torch.where(curvature > 1e-10 * step.norm(dim=1) * bend.norm(dim=1), 1 / curvature, 0.0)  # (B,)
        if not used:
            newest = inverse > 0
            scale = torch.where(newest, curvature / (bend**2).sum(1).clamp(min=1e-30), scale)
        weight = inverse * (step * direction).sum(1)
        direction = direction - weight[:, None] * bend
        used.append((step, bend, inverse, weight))
    direction = scale[:, None] * direction
    for step, bend, inverse, weight in reversed(used):
        direction = direction + (weight - inverse * (bend * direction).sum(1))[:, None] * step
    direction = torch.where(free, direction, 0.0)
    downhill = (direction * slope).sum(1) < 0
    return torch.where(downhill[:, None], direction, -slope / slope.norm(dim=1, keepdim=True).clamp(min=1.0))
