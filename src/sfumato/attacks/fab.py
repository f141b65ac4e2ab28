"""FAB: the nearest adversarial point by steps onto the linearised decision boundary (Croce & Hein 2020b, arXiv 1907.02044).

Each step goes to the boundary between the true and one other class as the gradient sees it, exactly projected inside the
box, and is drawn toward the clean sample (algorithm 1); a point that is adversarial is remembered and pulled back. The
targeted form, FAB-T, does so for one likely class after the other: one gradient a step however many classes there are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sfumato.attacks.context import AttackContext, Goal
from sfumato.attacks.losses import likely_targets
from sfumato.attacks.norms import flat, norm_of, per_sample
from sfumato.attacks.registry import within_eps
from sfumato.attacks.verify import or_clean
from sfumato.core.errors import InputError

OVERSHOOT = 1.05  # eta: past the boundary, so that the point is adversarial
MOST_BIAS = 0.1  # alpha_max: weight of the step from the clean sample
PULL_BACK = 0.9  # beta: an adversarial point restarts this far out
_SALT = 3000
_ROUNDS = 100  # of a finite, rising iteration that takes fewer than ten in practice


@within_eps("fab", eps=None)
def fab(context: AttackContext, *, steps: int = 100, restarts: int = 1, targets: int = 9) -> Tensor:
    """FAB-T: the nearest adversarial point.

    A sample leaves as soon as it is fooled within ``eps``, and one that is not comes back as it was. Where ``eps`` is None
    all steps are taken, for the nearest point at any distance. With ``targeted`` all goes toward ``y`` only.

    Args: as every attack, see registry.py, and
        steps: toward each class: a gradient and a forward pass each.
        restarts: runs toward each class; the first begins at ``x``.
        targets: how many classes to go toward, most likely first; never more than there are wrong ones.

    Returns:
        (B, ...) in the box: the nearest adversarial point found, or ``x`` where there was none or ``x`` is one.
    """
    if steps < 1 or restarts < 1 or targets < 1:
        raise InputError(
            f"fab with {steps} steps, {restarts} restarts and {targets} targets does nothing: give 1 or more"
        )
    x, y, targeted, anywhere = context.x, context.y, context.targeted, bool(context.eps.isinf().all())
    result = x.clone()
    if len(x) == 0:
        return result
    nearest = x.new_full((len(x),), torch.inf)
    with context.classifier.ready():
        clean = context.answers(x)
        robust = ~context.reached(clean)
        source = clean.argmax(1) if targeted else y
        aims = y[:, None] if targeted else likely_targets(clean, y, targets)  # (B, T)
        for number, aim in enumerate(aims.unbind(1)):
            for restart in range(restarts):
                rows = (robust & ((nearest > context.eps) | anywhere)).nonzero().flatten()
                if len(rows) == 0:
                    break
                some = context[rows]
                begin = some.x
                if restart:
                    reach = torch.minimum(nearest[rows], some.eps).clamp_max(float(flat(x).shape[1]))
                    start = replace(some, eps=reach).random_start(_SALT + 100 * number + restart)
                    begin = (begin + start) / 2
                goal = Goal(_difference, source[rows], aim[rows])
                found, distance = _walk(some, begin, goal, steps, stop=not anywhere)
                better = distance < nearest[rows]
                result[rows[better]], nearest[rows[better]] = found[better], distance[better]
        outside = nearest > context.eps
        result[outside] = x[outside]
        return or_clean(context.classifier, x, result, y, targeted)


def _walk(context: AttackContext, x_adv: Tensor, goal: Goal, steps: int, stop: bool) -> tuple[Tensor, Tensor]:
    """One run of algorithm 1: the nearest adversarial points (B, ...) and their distances (B,), infinite where none."""
    result, nearest = context.x.clone(), context.x.new_full((len(context),), torch.inf)
    rows = torch.arange(len(context), device=context.x.device)
    for _ in range(steps):
        if len(rows) == 0:
            break
        x, norm = context.x, context.norm
        _, gap, slope = context.gradients(x_adv, goal.loss, goal.labels)
        # The boundary is where gap + <slope, point - x_adv> = 0; once from x_adv, once from the clean sample.
        from_clean = gap + torch.linalg.vecdot(flat(slope), flat(x - x_adv))
        both, gaps = torch.cat([x_adv, x]), torch.cat([gap, from_clean])
        here, clean = to_hyperplane(both, torch.cat([slope, slope]), -gaps, norm).chunk(2)
        near, far = norm_of(here, norm).clamp_min(1e-8), norm_of(clean, norm).clamp_min(1e-8)
        bias = per_sample((near / (near + far)).clamp(0, MOST_BIAS), x)  # (n, 1, ...)
        x_adv = ((1 - bias) * (x_adv + OVERSHOOT * here) + bias * (x + OVERSHOOT * clean)).clamp(0, 1)
        hit = context.reached(context.answers(x_adv))
        distance = norm_of(x_adv - x, norm)
        better = hit & (distance < nearest[rows])
        result[rows[better]], nearest[rows[better]] = x_adv[better], distance[better]
        x_adv = torch.where(per_sample(hit.to(x.dtype), x) > 0, x + PULL_BACK * (x_adv - x), x_adv)
        stay = nearest[rows] > context.eps
        if stop and not bool(stay.all()):
            rows, x_adv, context, goal = rows[stay], x_adv[stay], context[stay], goal[stay]
    return result, nearest


def _difference(logits: Tensor, source: Tensor, aim: Tensor) -> Tensor:
    """The aim's logit less the source's, (B,): above 0 past their boundary."""
    return (logits.gather(1, aim[:, None]) - logits.gather(1, source[:, None])).squeeze(1)


def to_hyperplane(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """The shortest change, in ``norm`` and inside the box, with ``<normal, change> = value``: (B, ...).

    Where the box does not reach that far, the change toward it that goes as far as possible. Every entry moves in the
    direction that helps, so only sizes are sought: for Linf ``min(t, room)``, for L2 ``min(t |normal|, room)``, with t
    found exactly from below (each round solves for t and then clips more entries, and t only rises); for L1 the entries
    of largest ``|normal|`` are filled up to their room.

    Args:
        x: (B, ...) points in the box.
        normal: (B, ...).
        value: (B,).
        norm: Linf, L2 or L1.
    """
    toward = normal * per_sample(value.sign(), x)
    room = flat(torch.where(toward > 0, 1 - x, x))  # (B, D)
    weight, wanted = flat(normal).abs(), value.abs()[:, None]
    if norm == "L1":
        order = weight.argsort(dim=1, descending=True)
        sorted_weight, sorted_room = weight.gather(1, order), room.gather(1, order)
        gained = sorted_weight * sorted_room
        left = (wanted - (gained.cumsum(1) - gained)).clamp_min(0)
        taken = torch.minimum(left / sorted_weight.clamp_min(torch.finfo(x.dtype).tiny), sorted_room)
        size = torch.zeros_like(room).scatter(1, order, taken)
        return size.reshape(x.shape) * toward.sign()
    gain, most = weight.square() if norm == "L2" else weight, weight * room
    all_most = most.sum(1, keepdim=True)
    t, free = torch.zeros_like(wanted), torch.ones_like(room)  # free: 1 where not clipped
    for _ in range(_ROUNDS):
        slope = _dot(gain, free)
        left = (wanted - (all_most - _dot(most, free))).clamp_min(0)
        higher = torch.where(slope > 0, left / slope.clamp_min(torch.finfo(x.dtype).tiny), torch.inf)
        if not bool((higher > t * (1 + 1e-6)).any()):
            break
        t = torch.maximum(t, higher)
        free = (room > (t * weight if norm == "L2" else t)).to(room.dtype)
    # Without a limit (t infinite) an entry of weight 0 stays.
    size = torch.minimum((t * weight).nan_to_num(0.0) if norm == "L2" else t, room)
    return toward.sign().mul_(size.reshape(x.shape))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, D) and (B, D) to (B, 1); on a CPU several times faster than as products of matrices."""
    return torch.linalg.vecdot(a, b)[:, None]
