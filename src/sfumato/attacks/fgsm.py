"""One step along the gradient, and the plain gradient ascent of the lecture.

FGSM maximises the loss's linear approximation: ``x + eps sign(grad_x loss(x, y))`` for Linf (Goodfellow et al. 2015,
arXiv 1412.6572, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.attacks.context import AttackContext
from sfumato.attacks.losses import LOSSES, toward
from sfumato.attacks.norms import flat, per_sample, project_onto, steepest
from sfumato.attacks.pgd import Ascending, ascend_until_fooled
from sfumato.attacks.registry import within_eps

_FAR = 1e6  # a step this long, projected, ends where the linear loss is largest in ball and box


@within_eps("fgsm")
def fgsm(context: AttackContext, *, loss: str = "ce") -> Tensor:
    """The point of ball and box where the loss, made linear at ``x``, is largest.

    Args: as every attack, see registry.py, and
        loss: "ce", "margin" or "dlr".

    Returns:
        (B, ...) in the box and the ball, fooled or not.
    """
    x, norm = context.x, context.norm
    if len(x) == 0:
        return x.clone()
    with context.classifier.ready():
        slope = context.gradients(x, toward(LOSSES.find(loss), context.targeted), (context.y,))[2]
    if norm != "L1":
        return project_onto(x, x + _FAR * steepest(slope, norm), norm, context.eps)
    # Fill the steepest entries up to the box, one after the other, until eps is spent.
    room = torch.where(slope > 0, 1 - x, x) * (slope != 0)
    room, order = flat(room), flat(slope).abs().argsort(dim=1, descending=True)
    wanted = room.gather(1, order)
    spent = (per_sample(context.eps, wanted) - (wanted.cumsum(1) - wanted)).clamp_min(0)
    size = torch.zeros_like(wanted).scatter(1, order, torch.minimum(spent, wanted))
    return project_onto(x, x + size.reshape(x.shape) * slope.sign(), norm, context.eps)


@within_eps("gradient-ascent", ("L2", "Linf", "L1"), eps=1.0)
def gradient_ascent(context: AttackContext, *, steps: int = 100, rate: float = 0.1, loss: str = "ce") -> Tensor:
    """The lecture to the letter: ``x <- x + a * grad_x loss(x, y)``, kept in the box and the ball.

    The steps are as long as the gradient: where the classifier is sure the loss is flat and little happens, which is
    why the other attacks normalise it.

    Args: as every attack, see registry.py, and
        steps: at most; a sample leaves when it is fooled.
        rate: the lecture's ``a``.
        loss: as in ``fgsm``.

    Returns:
        (B, ...) in the box and the ball; where nothing was found, the point of highest loss.
    """
    how = Ascending(steps, lambda slope, *_: rate * slope, toward(LOSSES.find(loss), context.targeted), repeats=True)
    with context.classifier.ready():
        return ascend_until_fooled(context, context.x, how).x_adv
