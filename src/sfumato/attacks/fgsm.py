"""One step along the gradient, and the plain gradient ascent of the lecture.

FGSM maximises the loss's linear approximation: ``x + eps sign(grad_x loss(x, y))`` for Linf (Goodfellow et al. 2015,
arXiv 1412.6572, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.context import AttackContext
from sfumato.attacks.losses import LOSSES, toward
from sfumato.attacks.norms import flat, per_sample, project_onto, steepest
from sfumato.attacks.pgd import Ascending, ascend_until_fooled
from sfumato.attacks.registry import ATTACKS

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

_FAR = 1e6  # a step this long, projected, ends where the linear loss is largest in ball and box


@ATTACKS.add("fgsm")
def fgsm(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    loss: str = "ce",
    batch_size: int | None = None,
) -> Tensor:
    """The point of ball and box where the loss, made linear at ``x``, is largest.

    Args:
        classifier: to attack.
        x: (B, ...) pixels in [0, 1].
        y: (B,) true labels, or with ``targeted`` the labels wanted.
        norm: Linf, L2 or L1.
        eps: radius, a float or (B,).
        targeted: lower the loss at ``y`` in place of raising it.
        seed, ids: not used, nothing is random.
        loss: "ce", "margin" or "dlr".
        batch_size: samples in a pass; the classifier's own by default.

    Returns:
        (B, ...) in the box and the ball, fooled or not.
    """
    context = AttackContext.of(
        classifier, x, y, norm=norm, eps=eps, targeted=targeted, batch_size=batch_size, attack="fgsm"
    )
    x = context.x
    if len(x) == 0:
        return x.clone()
    with classifier.ready():
        slope = context.gradients(x, toward(LOSSES.find(loss), targeted), (context.y,))[2]
    if norm != "L1":
        return project_onto(x, x + _FAR * steepest(slope, norm), norm, eps)
    # Fill the steepest entries up to the box, one after the other, until eps is spent.
    room = torch.where(slope > 0, 1 - x, x) * (slope != 0)
    room, order = flat(room), flat(slope).abs().argsort(dim=1, descending=True)
    wanted = room.gather(1, order)
    spent = (per_sample(eps, wanted) - (wanted.cumsum(1) - wanted)).clamp_min(0)
    size = torch.zeros_like(wanted).scatter(1, order, torch.minimum(spent, wanted))
    return project_onto(x, x + size.reshape(x.shape) * slope.sign(), norm, eps)


@ATTACKS.add("gradient-ascent")
def gradient_ascent(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    eps: float | Tensor = 1.0,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    steps: int = 100,
    rate: float = 0.1,
    loss: str = "ce",
    batch_size: int | None = None,
) -> Tensor:
    """The lecture to the letter: ``x <- x + a * grad_x loss(x, y)``, kept in the box and the ball.

    The steps are as long as the gradient: where the classifier is sure the loss is flat and little happens, which is
    why the other attacks normalise it.

    Args:
        classifier, x, y, norm, eps, targeted, loss, batch_size: as in ``fgsm``.
        seed, ids: not used, nothing is random.
        steps: at most; a sample leaves when it is fooled.
        rate: the lecture's ``a``.

    Returns:
        (B, ...) in the box and the ball; where nothing was found, the point of highest loss.
    """
    context = AttackContext.of(
        classifier, x, y, norm=norm, eps=eps, targeted=targeted, batch_size=batch_size, attack="gradient-ascent"
    )
    how = Ascending(steps, lambda slope, *_: rate * slope, toward(LOSSES.find(loss), targeted), repeats=True)
    with classifier.ready():
        return ascend_until_fooled(context, context.x, how).x_adv
