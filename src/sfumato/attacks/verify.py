"""Whether what an attack returns does what it claims: a fresh forward pass, the box, the ball, and 8-bit pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.attacks.losses import reached
from sfumato.attacks.norms import flat, norm_of

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

BALL_SLACK = 1e-6  # float32 rounding of x + delta - x, for Linf; relative for the sums of L2 and L1


def fooled(classifier: Classifier, x_adv: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """(B,) bool by a fresh forward pass in batches of the classifier's size: not ``y``, or with ``targeted`` just ``y``."""
    if len(x_adv) == 0:
        return torch.zeros(0, dtype=torch.bool, device=x_adv.device)
    logits = classifier.logits(x_adv)
    return reached(logits, y.to(logits.device), targeted).to(x_adv.device)


def or_clean(classifier: Classifier, x: Tensor, x_adv: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """What a minimal-norm attack returns: ``x_adv`` where a fresh forward pass confirms it, elsewhere ``x``."""
    confirmed = fooled(classifier, x_adv, y, targeted)
    return torch.where(confirmed.reshape(-1, *[1] * (x.ndim - 1)), x_adv, x)


@dataclass(frozen=True)
class Verification:
    """What a fresh look at adversarial samples finds; every field is (B,).

    Args:
        fooled: the classifier's answer is what the attack wanted (and its logits are numbers).
        fooled_8bit: still so after rounding the pixels to the 256 values that an image file holds.
        predicted: the class the classifier says.
        in_box: all pixels in [0, 1].
        distance: the norm of ``x_adv - x``.
        in_ball: ``distance <= eps`` up to rounding; all True where no eps was given.
        distance_8bit: the norm after rounding (rounding may leave the ball by half of 1/255 per pixel).
    """

    fooled: Tensor
    fooled_8bit: Tensor
    predicted: Tensor
    in_box: Tensor
    distance: Tensor
    in_ball: Tensor
    distance_8bit: Tensor

    @property
    def success(self) -> Tensor:
        """(B,) bool: fooled, in the box and in the ball."""
        return self.fooled & self.in_box & self.in_ball


def verified(
    classifier: Classifier,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | Tensor | None = None,
    targeted: bool = False,
) -> Verification:
    """Check samples from scratch, trusting nothing the attack said.

    Args:
        classifier: as attacked.
        x: (B, ...) clean pixels.
        x_adv: (B, ...) what the attack returned.
        y: (B,) true labels, or with ``targeted`` the labels wanted.
        norm: Linf, L2, L1 or L0.
        eps: the radius, a float or (B,); None for attacks of minimal norm.
        targeted: as in the attack.
    """
    in_box = ((flat(x_adv) >= 0) & (flat(x_adv) <= 1)).all(1)  # False for NaN
    inside = torch.nan_to_num(x_adv).clamp(0, 1)
    logits = classifier.logits(inside)
    rounded = (inside * 255).round() / 255
    distance = norm_of(x_adv - x, norm)
    if eps is None:
        in_ball = torch.ones_like(in_box)
    else:
        radius = torch.as_tensor(eps, dtype=distance.dtype, device=distance.device)
        in_ball = distance <= radius * (1 + 1e-5) + BALL_SLACK
    return Verification(
        fooled=reached(logits, y.to(logits.device), targeted).to(x.device) & in_box,
        fooled_8bit=fooled(classifier, rounded, y, targeted),
        predicted=logits.argmax(1).to(x.device),
        in_box=in_box,
        distance=distance,
        in_ball=in_ball,
        distance_8bit=norm_of(rounded - x, norm),
    )
