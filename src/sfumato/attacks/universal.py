"""One perturbation for all images (Moosavi-Dezfooli et al. 2017, arXiv 1610.08401), found as Shafahi et al. 2020 do."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.attacks.losses import cross_entropy, margin, toward
from sfumato.attacks.norms import check_norm, project, steepest
from sfumato.attacks.registry import ATTACKS
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier


@ATTACKS.add("universal")
def universal(classifier: Classifier, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """The images with one and the same perturbation added, found on these images and clipped to [0, 1].

    Unlike in the other attacks, the result for an image depends on the others: to judge how well a perturbation
    carries over to new images, find it with ``universal_perturbation``, whose arguments these are, on some and add it to
    others.

    Returns:
        (B, ...) in [0, 1], within ``eps`` of ``x``.
    """
    return (x + universal_perturbation(classifier, x, y, **settings)).clamp(0, 1)


def universal_perturbation(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float = 8 / 255,
    targeted: bool = False,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    epochs: int = 20,
    batch_size: int = 64,
) -> Tensor:
    """One perturbation that fools the classifier on as many of the images as possible.

    Projected steepest ascent on the mini-batch mean of the clipped cross-entropy (Shafahi et al. 2020, arXiv
    1811.11304, algorithm 2 and equation 4): the clipping keeps a few images with a huge loss from ruling the rest. The
    step is ``eps / 4`` at first and falls to 0 linearly; the perturbation that fools most after an epoch is kept.

    Args: as every attack, see registry.py, and
        norm: "Linf" or "L2".
        eps: the perturbation's norm, one number.
        seed, ids: the order of the images depends on the seed and their numbers alone.
        epochs: passes over the images; each costs a gradient and a forward pass an image.
        batch_size: images in a step.

    Returns:
        (...) the shape of one image, of norm ``eps`` at most.

    Raises:
        InputError: no images, another norm, or an eps that is not one positive number.
    """
    check_norm(norm, ("Linf", "L2"), "universal")
    if not len(x):
        raise InputError("a universal perturbation needs images: give at least one")
    if isinstance(eps, Tensor) or not eps > 0:
        raise InputError(f"a universal perturbation has one eps above 0 for all images, not {eps}: give one number")
    streams = Streams(seed, range(len(x)) if ids is None else ids, device=x.device)
    delta = torch.zeros_like(x[:1])
    best, most = delta, -1.0
    total = epochs * -(-len(x) // batch_size)
    step = 0
    with classifier.ready():
        for _ in range(epochs):
            for rows in streams.bits().argsort().split(batch_size):
                gradient = _mean_gradient(classifier, (x[rows] + delta).clamp(0, 1), y[rows], targeted)
                length = eps / 4 * (1 - step / total)
                delta = project(delta + length * steepest(gradient, norm), norm, eps)
                step += 1
            rate = (toward(margin, targeted)(classifier.logits((x + delta).clamp(0, 1)), y) > 0).double().mean().item()
            if rate > most:
                best, most = delta, rate
    return best[0]


universal.__signature__ = inspect.signature(universal_perturbation)  # type: ignore[attr-defined]


def _mean_gradient(classifier: Classifier, x: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """(1, ...) of the mean clipped loss; the clip is the loss of a blind guess, twice."""

    def clipped(logits: Tensor) -> Tensor:
        if targeted:
            return -cross_entropy(logits, y)
        ceiling = 2 * torch.log(torch.tensor(float(logits.shape[1])))
        return cross_entropy(logits, y).clamp(max=float(ceiling))

    return torch.nan_to_num(classifier.gradient(x, clipped)[1]).mean(0, keepdim=True)
