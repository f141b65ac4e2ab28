"""What the attacks share: checked arguments, gradients in batches, and random starting points."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.norms import per_sample, project_onto, steepest
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier

TOLERANCE = 1e-6  # how far outside [0, 1] rounding may leave a pixel


class _Batches(NamedTuple):
    values: float  # of a sample, at most
    with_gradients: int  # samples in a pass
    without: int


# The activations of more samples leave a CPU's cache, and fewer leave it idle: either costs a small network a tenth to a
# half more a sample.
CPU_BATCHES = (_Batches(2**10, 64, 128), _Batches(2**15, 32, 128), _Batches(math.inf, 16, 64))


def checked(
    x: Tensor, y: Tensor, ids: Tensor | Sequence[int] | None, eps: float | Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` detached, ``y`` beside it, and (B,) ``ids`` (default 0 ... B - 1), all on the device of ``x``.

    Raises:
        InputError: pixels outside [0, 1], labels or ids that do not fit the samples, or an eps that is negative or no number.
    """
    if x.ndim < 2:
        raise InputError(f"the samples have shape {tuple(x.shape)}: attacks take a batch (B, C, H, W)")
    if y.shape != x.shape[:1]:
        raise InputError(f"{len(x)} samples and labels of shape {tuple(y.shape)}: give one label a sample")
    if x.numel() and not (float(x.min()) >= -TOLERANCE and float(x.max()) <= 1 + TOLERANCE):
        raise InputError(f"pixels run from {float(x.min()):g} to {float(x.max()):g}: attacks take pixels from 0 to 1")
    if eps is not None and not bool((per_sample(eps, x) >= 0).all()):
        raise InputError(f"eps is {eps}: give sizes of 0 or more, in units of pixels from 0 to 1")
    numbers = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    if numbers.shape != x.shape[:1]:
        raise InputError(f"{len(x)} samples and ids of shape {tuple(numbers.shape)}: give one id a sample")
    return x.detach(), y.detach().to(x.device, torch.int64), numbers.to(x.device, torch.int64)


def batch_for(classifier: Classifier, x: Tensor, batch_size: int | None) -> int:
    """The samples in a pass: as asked; else the classifier's, but on a CPU no more than suit its cache."""
    return batch_size or min(classifier.batch_size, _suited(x).with_gradients)


def answer_batch(classifier: Classifier, x: Tensor, batch_size: int | None) -> int:
    """The samples in a pass without gradients, which keeps less: more of them, but no more than the classifier's."""
    return batch_size or min(classifier.batch_size, _suited(x).without)


def _suited(x: Tensor) -> _Batches:
    if x.device.type != "cpu":
        return _Batches(math.inf, sys.maxsize, sys.maxsize)
    return next(batches for batches in CPU_BATCHES if x[:1].numel() <= batches.values)


def answers(classifier: Classifier, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits (B, K) without gradients, in the batches of ``answer_batch``, on the device of ``x``."""
    with torch.no_grad():
        parts = [classifier(part) for part in x.split(answer_batch(classifier, x, batch_size))]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.device)


def gradients(
    classifier: Classifier,
    x: Tensor,
    loss: Callable[..., Tensor],
    labels: Sequence[Tensor],
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), losses (B,) and the losses' gradient with respect to ``x`` (B, ...), in full batches.

    ``loss(logits, *labels)`` gives (B,). Entries of the gradient that are not numbers count as 0.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    size = batch_for(classifier, x, batch_size)
    for part, *own in zip(x.split(size), *(label.split(size) for label in labels), strict=True):
        values: list[Tensor] = []

        def kept(logits: Tensor, own: Sequence[Tensor] = own, values: list[Tensor] = values) -> Tensor:
            own = [label.clone() if label.is_inference() else label for label in own]  # as in Classifier.gradient
            values.append(loss(logits, *(label.to(logits.device) for label in own)))
            return values[0]

        logits, slope = classifier.gradient(part, kept)
        found.append((logits, values[0].detach().to(part.device), slope))
    logits, losses, slopes = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found, strict=True))
    # A sum is cheaper than a second copy of all of them, and tells whether one is needed.
    return logits, losses, slopes if bool(slopes.sum().isfinite()) else slopes.nan_to_num(0.0, 0.0, 0.0)


def random_start(x: Tensor, norm: str, eps: Tensor, streams: Streams) -> Tensor:
    """A random point near the rim of the ball, inside the box; (B, ...).

    Linf: uniform in the cube. L2: a random direction, on the sphere. L1: normal noise, projected (Croce & Hein 2021).
    """
    if norm == "Linf":
        return project_onto(x, x + per_sample(eps, x) * streams.uniform(x.shape[1:], -1, 1).to(x.dtype), norm, eps)
    noise = streams.normal(x.shape[1:]).to(x.dtype)
    if norm == "L2":
        noise = per_sample(eps, x) * steepest(noise, "L2")
    return project_onto(x, x + noise, norm, eps)
