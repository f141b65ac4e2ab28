"""Adversarial training: the inner maximisation, and the losses that are minimised at what it finds.

    min over weights  E max over ||d|| <= eps, x + d in [0, 1]  loss(f(x + d), y)        Madry et al. 2018, equation 2.1

``METHODS`` holds a loss (see ``classifiers.objective``) for each way to approach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.attacks.ascent import ascend
from sfumato.attacks.batching import random_start
from sfumato.attacks.losses import cross_entropy
from sfumato.attacks.norms import check_norm
from sfumato.classifiers.objective import BatchLoss, Network, standard
from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.core.streams import Streams
from sfumato.engine import Moment

NORMS = ("Linf", "L2")
NOISY = ("noise", "denoised")  # methods that train for smoothing (``certify``), not for the bare classifier
FAST_STEP = 1.25  # times eps, the one step of Wong et al. 2020: from a random start, 1 would stop short of the rim
REACH = 2.5  # times eps, all steps of PGD together: Madry et al. 2018
WARMUP = 0.15  # share of the budget in which eps rises to what it is to be
_SALT = 0x4841  # keeps the random starts apart from those of attacks with the same seed


@dataclass(frozen=True)
class Threat:
    """What to be robust against, and how hard training looks for it.

    Attributes:
        norm, eps: the ball; pixels are in [0, 1].
        steps: gradients of the inner maximisation, for the methods that take several.
        beta: of TRADES, how much robustness counts against accuracy.
    """

    norm: str
    eps: float
    steps: int = 3
    beta: float = 6.0

    def __post_init__(self) -> None:
        check_norm(self.norm, NORMS, "adversarial training")
        if not 0 < self.eps < float("inf"):
            problem = f"eps {self.eps:g} leaves nothing to be hardened against"
            raise InputError(f"{problem}: give a size over 0, of pixels in [0, 1]")
        if self.steps < 1:
            raise InputError(f"steps {self.steps}: the inner maximisation needs 1 or more")
        if not 0 < self.beta < float("inf"):
            raise InputError(f"beta {self.beta:g} cannot weigh robustness: give a number over 0, such as 6")

    def at(self, moment: Moment) -> float:
        """Eps at that moment: it rises from 0, for weights that know nothing yet learn nothing from what fools them."""
        return self.eps * min(1.0, moment.fraction / WARMUP)


METHODS: Registry[Callable[[Threat], BatchLoss]] = Registry("method")
"""From what to be robust against to what each step of training lowers."""


def maximise(
    network: Network,
    x: Tensor,
    rise: Callable[[Tensor], Tensor],
    threat: Threat,
    moment: Moment,
    share: float | None = None,
) -> Tensor:
    """The point of box and ball where a loss is highest, as far as a few steepest steps from a random start find it.

    The module is in evaluation mode meanwhile: what is attacked is the classifier as it will answer, each image by
    itself, and batch normalisation's running statistics take no account of points on the way.

    Args:
        network: to attack.
        x: (B, C, H, W) pixels in [0, 1].
        rise: from (B, K) logits to (B,), to be raised.
        threat: the ball, and how many steps.
        moment: eps at that moment, and the seed of the random start.
        share: length of each step as a share of eps; all together 2.5 by default.

    Returns:
        (B, C, H, W), detached.
    """

    def slope(x_adv: Tensor, _: int) -> Tensor:
        leaf = x_adv.detach().requires_grad_()
        return torch.autograd.grad(rise(network(leaf)).sum(), leaf)[0].nan_to_num(0.0, 0.0, 0.0)

    norm, steps = threat.norm, threat.steps
    radius = torch.full((len(x),), threat.at(moment), dtype=x.dtype, device=x.device)
    start = random_start(x, norm, radius, Streams(moment.seed, range(len(x)), salt=_SALT, device=x.device))
    step = REACH / steps if share is None else share
    with network.classifier.ready(), torch.enable_grad():
        return ascend(x, slope, norm=norm, eps=radius, steps=steps, step=step, begin=start).detach()


@METHODS.add("pgd")
def pgd_training(threat: Threat) -> BatchLoss:
    """Cross-entropy at what projected gradient descent finds (Madry et al. 2018, arXiv 1706.06083, section 2)."""

    def objective(network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        worst = maximise(network, x, lambda logits: cross_entropy(logits, y), threat, moment)
        return standard(network, worst, y, moment)

    return objective


@METHODS.add("fast")
def fast_training(threat: Threat) -> BatchLoss:
    """Cross-entropy one step from a random start (Wong et al. 2020, arXiv 2001.03994, algorithm 3).

    It may learn to bend the loss so that one step finds nothing, and be robust against that step only (catastrophic
    overfitting, their section 5); see ``harden.HardeningObjective`` for what notices that.
    """

    def objective(network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        single = replace(threat, steps=1)
        worst = maximise(network, x, lambda logits: cross_entropy(logits, y), single, moment, FAST_STEP)
        return standard(network, worst, y, moment)

    return objective


@METHODS.add("trades")
def trades_training(threat: Threat) -> BatchLoss:
    """``CE(f(x), y) + beta max KL(f(x) || f(x'))`` (Zhang et al. 2019, arXiv 1901.08573, equation 5).

    Clean and worst images go through batch normalisation as one batch, so that both see the statistics of both, as they
    will in evaluation mode. The inner maximisation starts anywhere in the ball: next to x, as in the paper, the
    divergence is less than the rounding of bf16.
    """

    def objective(network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        with network.classifier.ready(), torch.no_grad():
            predicted = network(x).log_softmax(1)  # (B, K)
        worst = maximise(network, x, lambda logits: divergence(predicted, logits.log_softmax(1)), threat, moment)
        clean, moved = network(torch.cat([x, worst])).chunk(2)
        return trades_loss(clean, moved, y, threat.beta), moved

    return objective


@METHODS.add("noise")
def noise_training(threat: Threat) -> BatchLoss:
    """Cross-entropy of images with Gaussian noise on them, which the batches come with (``noise_of``); no attack."""
    return standard


@METHODS.add("denoised")
def denoised_training(threat: Threat) -> BatchLoss:
    """Cross-entropy of what a denoiser makes of images with Gaussian noise on them, as ``certify`` shows them; no attack.

    The classifier of denoised smoothing, fine-tuned (Carlini et al. 2023, arXiv 2206.10550, section 4).
    """
    return standard


def noise_of(threat: Threat) -> float:
    """The standard deviation of the noise that stands for a threat: eps a pixel, or for L2 half of the ball's radius.

    Smoothed with half of its radius, a classifier that is right in 98 of 100 draws is certified on the ball.
    """
    return threat.eps if threat.norm == "Linf" else threat.eps / 2


def trades_loss(clean: Tensor, moved: Tensor, y: Tensor, beta: float) -> Tensor:
    """TRADES of (B, K) logits at the clean and at the moved images: a number."""
    return F.cross_entropy(clean, y) + beta * divergence(clean.log_softmax(1), moved.log_softmax(1)).mean()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` of (B, K) logarithms of probabilities: (B,)."""
    return (log_p.exp() * (log_p - log_q)).sum(1)
